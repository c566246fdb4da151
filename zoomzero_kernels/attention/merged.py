"""Attention of packed rows from its blocks: forward merges them by log-sum-exp, backward adds their gradients up.

Note [Merging]
Over keys A and B with outputs o_A, o_B and log-sum-exp s_A, s_B of the scores, softmax attention over both is
o_A exp(s_A - s) + o_B exp(s_B - s) with s = log(exp s_A + exp s_B). Its gradient in the scores of A is
p (g.v - g.o), p = exp(score - s): what the backward kernel of A alone computes if it is given o and s for o_A and s_A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels.attention.blocks import Block, Blocks, Inputs, Kernel, Results


def sums_dtype(query: Tensor) -> torch.dtype:
    """Of the log-sum-exp."""
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def like_tokens(tensor: Tensor) -> Tensor:
    """Zeros [P, H, L, D] that lie in memory as [P, L, H, D], the order in which models read an attention's output."""
    return tensor.new_zeros([tensor.shape[axis] for axis in (0, 2, 1, 3)]).transpose(1, 2)


def forward(kernel: Kernel, inputs: Inputs, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Output [P, H, L, D] and log-sum-exp [P, H, L]; 0 outside of the blocks."""
    inputs = _readable_inputs(inputs)
    out, sums = (
        like_tokens(inputs.query),
        inputs.query.new_zeros(inputs.query.shape[:3], dtype=sums_dtype(inputs.query)),
    )
    for block, part, part_sums in kernel.forward(inputs, blocks.own, True):
        block.of_queries(out).copy_(part)
        block.of_queries(sums).copy_(part_sums)
        del part, part_sums  # before the next block's are made
    for block, part, part_sums in kernel.forward(inputs, blocks.shared, False):
        _merge(block, out, sums, part, part_sums)
    return out, sums


def _merge(block: Block, out: Tensor, sums: Tensor, part: Tensor, part_sums: Tensor) -> None:
    """Add to `out` and `sums`, in place, what the block's queries found among other keys. See Note [Merging]."""
    mine, mine_sums = block.of_queries(out), block.of_queries(sums)
    total = torch.logaddexp(mine_sums, part_sums)
    mine.copy_(mine * (mine_sums - total).exp()[..., None] + part * (part_sums - total).exp()[..., None])
    mine_sums.copy_(total)


def backward(kernel: Kernel, inputs: Inputs, results: Results, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given `forward`'s results and the gradient of its output."""
    inputs = _readable_inputs(inputs)
    results = results._replace(grad=_readable(results.grad), out=_readable(results.out))
    grads = like_tokens(inputs.query), like_tokens(inputs.key), like_tokens(inputs.value)
    for kind, causal in ((blocks.own, True), (blocks.shared, False)):
        for block, *parts in kernel.backward(inputs, results, kind, causal):
            windows = block.of_queries(grads[0]), block.of_keys(grads[1]), block.of_keys(grads[2])
            for window, part in zip(windows, parts, strict=True):
                window.add_(part)
            del part, parts  # before the next block's are made
    return grads


def _readable_inputs(inputs: Inputs) -> Inputs:
    return inputs._replace(query=_readable(inputs.query), key=_readable(inputs.key), value=_readable(inputs.value))


def _readable(tensor: Tensor) -> Tensor:
    """The kernels read a head as one run of memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
