"""The blocks in plain torch, for devices, dtypes and head sizes that no flash kernel covers.

Scores are held for as many queries at a time as fit `_MAX_SCORES`, never for all; half precision computes in float32.
Grouped heads are folded into the rows of one matrix product, so that keys are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zoomzero_kernels.attention.blocks import Block, Inputs, Results

_MAX_SCORES = 1 << 24  # 64 MB of float32 at a time


class EagerKernel:
    """See `zoomzero_kernels.attention.blocks.Kernel`."""

    name = "eager"

    def forward(self, inputs: Inputs, blocks: Sequence[Block], causal: bool) -> Iterator[tuple[Block, Tensor, Tensor]]:
        for block in blocks:
            query, *keys = inputs.of(block)
            key, value = map(_wide, keys)
            outs, sums = [], []
            for rows in _chunks(block, query.shape[1]):
                part = _fold(_wide(query[:, :, rows]), key.shape[1])
                scores = _scores(part, key, rows, causal, inputs.scale)
                total = scores.logsumexp(-1)
                outs.append(_unfold((scores - total[..., None]).exp() @ value, query.shape[1]).to(query.dtype))
                sums.append(_unfold(total[..., None], query.shape[1])[..., 0])
            yield block, torch.cat(outs, dim=2), torch.cat(sums, dim=2)

    def backward(
        self, inputs: Inputs, results: Results, blocks: Sequence[Block], causal: bool
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        for block in blocks:
            query, *keys = inputs.of(block)
            key, value = map(_wide, keys)
            grad, out, sums = results.of(block)
            heads, key_heads = query.shape[1], key.shape[1]
            grad_query = []
            grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
            for rows in _chunks(block, heads):
                part, slope, output = (_fold(_wide(tensor[:, :, rows]), key_heads) for tensor in (query, grad, out))
                total = _fold(sums[:, :, rows, None], key_heads)
                weights = (_scores(part, key, rows, causal, inputs.scale) - total).exp()
                grad_value += weights.mT @ slope
                change = weights * (slope @ value.mT - (slope * output).sum(-1, keepdim=True)) * inputs.scale
                grad_key += change.mT @ part
                grad_query.append(_unfold(change @ key, heads).to(query.dtype))
            yield block, torch.cat(grad_query, dim=2), grad_key.to(query.dtype), grad_value.to(query.dtype)


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
