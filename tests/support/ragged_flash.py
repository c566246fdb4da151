"""torch's private ragged flash attention for CUDA, in plain torch on the CPU: calls of it run for real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.attention.blocks import Block, Inputs, Results
from zoomzero_kernels.attention.eager import EagerKernel


def ragged_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """What torch's ragged flash op for CUDA returns, sequence by sequence in plain torch."""
    outs, sums = [], []
    for (start, end), (first, last) in zip(
        starts.unfold(0, 2, 1).tolist(), key_starts.unfold(0, 2, 1).tolist(), strict=True
    ):
        q, k, v = query[start:end], key[first:last], value[first:last]
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        if causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, dim=1)


@contextlib.contextmanager
def ragged_flash_in_plain_torch() -> Iterator[None]:
    """Inside, aten's ragged flash ops run on the CPU, under torch's own schemas."""
    library = torch.library.Library("aten", "IMPL")

    def forward(
        q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, max_q: int, max_k: int, *rest: Any,
        scale: float, **_: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        assert max_q == starts.diff().max()
        assert max_k == key_starts.diff().max()
        out, sums = ragged_attention(q, k, v, starts, key_starts, rest[1], scale)
        return out, sums, *(q.new_empty(0) for _ in range(3))

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, starts: Tensor, key_starts: Tensor,
        max_q: int, max_k: int, dropout: float, causal: bool, *_: Any, scale: float, **__: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        assert sums.is_contiguous()
        grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
        kernel = EagerKernel()
        windows = zip(starts.unfold(0, 2, 1).tolist(), key_starts.unfold(0, 2, 1).tolist(), strict=True)
        for (start, end), (first, last) in windows:
            block = Block(0, start, end - start, first, last - first)
            grads_and_out, inputs = ([x.transpose(0, 1)[None] for x in part] for part in ((grad, out), (q, k, v)))
            results = Results(*grads_and_out, sums[None])
            (_, *parts), *_ = kernel.backward(Inputs(*inputs, scale), results, [block], causal)
            for whole, part, place in zip(
                grads, parts, (slice(start, end), slice(first, last), slice(first, last)), strict=True
            ):
                whole[place] = part[0].transpose(0, 1)
        return tuple(grads)

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    yield
    library._destroy()
