"""The blocks in plain torch, for devices, dtypes and head sizes that no flash kernel covers.

Scores are held for as many queries at a time as fit `_MAX_SCORES`, never for all; half precision computes in float32.
Grouped heads are folded into the rows of one matrix product, so that keys are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zoomzero_kernels.attention.blocks import Block

_MAX_SCORES = 1 << 24  # 64 MB of float32 at a time


class EagerKernel:
    """See `zoomzero_kernels.attention.blocks.Kernel`."""

    name = "eager"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], causal: bool, scale: float
    ) -> Iterator[tuple[Block, Tensor, Tensor]]:
        for block in blocks:
            q, k, v = block.of_queries(query), _wide(block.of_keys(key)), _wide(block.of_keys(value))
            outs, sums = [], []
            for rows in _chunks(block, q.shape[1]):
                part = _fold(_wide(q[:, :, rows]), k.shape[1])
                scores = _scores(part, k, rows, causal, scale)
                total = scores.logsumexp(-1)
                outs.append(_unfold((scores - total[..., None]).exp() @ v, q.shape[1]).to(query.dtype))
                sums.append(_unfold(total[..., None], q.shape[1])[..., 0])
            yield block, torch.cat(outs, dim=2), torch.cat(sums, dim=2)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        blocks: Sequence[Block],
        causal: bool,
        scale: float,
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        for block in blocks:
            q, g, o = (block.of_queries(tensor) for tensor in (query, grad, out))
            k, v, sums = _wide(block.of_keys(key)), _wide(block.of_keys(value)), block.of_queries(logsumexp)
            heads, key_heads = q.shape[1], k.shape[1]
            grad_query = []
            grad_key, grad_value = torch.zeros_like(k), torch.zeros_like(v)
            for rows in _chunks(block, heads):
                part, slope, output = (_fold(_wide(tensor[:, :, rows]), key_heads) for tensor in (q, g, o))
                total = _fold(sums[:, :, rows, None], key_heads)
                weights = (_scores(part, k, rows, causal, scale) - total).exp()
                grad_value += weights.mT @ slope
                change = weights * (slope @ v.mT - (slope * output).sum(-1, keepdim=True)) * scale
                grad_key += change.mT @ part
                grad_query.append(_unfold(change @ k, heads).to(query.dtype))
            yield block, torch.cat(grad_query, dim=2), grad_key.to(key.dtype), grad_value.to(value.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _chunks(block: Block, num_heads: int) -> Iterator[slice]:
    size = max(1, _MAX_SCORES // (block.num_windows * num_heads * block.key_length))
    for start in range(0, block.query_length, size):
        yield slice(start, min(start + size, block.query_length))


def _fold(tensor: Tensor, key_heads: int) -> Tensor:
    """[count, H, n, D] -> [count, Hkv, H / Hkv * n, D]: the heads that share keys become rows of one product."""
    return tensor.unflatten(1, (key_heads, -1)).flatten(2, 3)


def _unfold(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `_fold`: [count, Hkv, H / Hkv * n, D] -> [count, H, n, D]."""
    groups = heads // tensor.shape[1]
    return tensor.unflatten(2, (groups, -1)).flatten(1, 2)


def _scores(part: Tensor, key: Tensor, rows: slice, causal: bool, scale: float) -> Tensor:
    """part [count, Hkv, r * n, D], key [count, Hkv, K, D] -> [count, Hkv, r * n, K]; -inf for keys after the query."""
    scores = part @ key.mT * scale
    if not causal:
        return scores
    places = torch.arange(key.shape[2], device=key.device)
    hidden = places > places[rows, None]
    return scores.masked_fill_(hidden.repeat(scores.shape[2] // hidden.shape[0], 1), float("-inf"))
