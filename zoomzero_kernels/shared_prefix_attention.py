"""Attention of packed rows: a prefix once, and branches that see the prefix and themselves.

Problem: G completions of one long prompt, packed into the row [prefix | branch 0 | ... | branch G-1 | padding], need a
mask that no flash kernel takes and that hides more than half of the [L, L] scores. Here the branches' attention is
computed in two parts, over the prefix (no mask) and over themselves (causal), each by a flash kernel, and merged by
their log-sum-exp. The backward pass calls each part's own backward kernel with the merged output and log-sum-exp, with
which the gradients of the parts add up to those of the whole.

Work per row, prefix P, branches of R: P^2/2 + G*R*P + G*R^2/2 scores, no more. Memory: that of the output, twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.attention import flash, merged
from zoomzero_kernels.attention.blocks import blocks_of

_OP = "shared_prefix_attention"


def _rows_of(branch_lengths: Sequence[int], branch_counts: Sequence[int]) -> list[list[int]]:
    lengths = iter(branch_lengths)
    return [[next(lengths) for _ in range(count)] for count in branch_counts]


@torch.library.custom_op("zoomzero::shared_prefix_attention", mutates_args=())
def _shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[int],
    branch_counts: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    blocks = blocks_of(prefix_lengths, _rows_of(branch_lengths, branch_counts))
    return merged.forward(flash.kernel_for(query), query, key, value, blocks, scale)


@_shared_prefix_attention.register_fake
def _shared_prefix_attention_fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return merged.like_tokens(query), query.new_empty(query.shape[:3], dtype=merged.sums_dtype(query))


@torch.library.custom_op("zoomzero::shared_prefix_attention_backward", mutates_args=())
def _shared_prefix_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    sums: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[int],
    branch_counts: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = blocks_of(prefix_lengths, _rows_of(branch_lengths, branch_counts))
    return merged.backward(flash.kernel_for(query), grad, query, key, value, out, sums, blocks, scale)


@_shared_prefix_attention_backward.register_fake
def _shared_prefix_attention_backward_fake(
    _: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return merged.like_tokens(query), merged.like_tokens(key), merged.like_tokens(value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[3:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:3], *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_shared_prefix_attention_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None)


_shared_prefix_attention.register_autograd(_backward, setup_context=_setup_context)


def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[Sequence[int]],
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of packed rows [prefix | branch 0 | ... | branch G-1 | padding], never holding [L, L].

    The prefix is causal; a branch sees the whole prefix and, causally, itself, never another branch. On CPU and CUDA
    torch's own flash kernels compute it where they can (`build_info()["shared_prefix_attention"]`; on CUDA that is half
    precision with a head size of up to 256 in steps of 8), otherwise plain torch, some rows of scores at a time.
    Under autocast the tensors are cast to its dtype, as for torch's own attention.

    Args:
        query: [P, H, L, D] float32, float64, bfloat16 or float16; any strides.
        key: [P, Hkv, L, D], H a multiple of Hkv: query head h reads key head h // (H / Hkv), which is not repeated.
        value: as `key`.
        prefix_lengths: P ints, 0 for a row without a prefix.
        branch_lengths: P lists of ints, the row's branches in order; rows may differ in number, and lengths may be 0.
        scale: factor of the scores, D**-0.5 unless given.

    Returns:
        [P, H, L, D], 0 on padding, whose values are not read; differentiable once in query, key and value. In memory
        it lies as [P, L, H, D].

    Raises:
        ValueError: shapes, devices or lengths do not fit together.
        TypeError: dtypes, or lengths that are not ints.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    _check_tensors(query, key, value)
    _check_lengths(query, prefix_lengths, branch_lengths)
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{_OP}: scale must be finite, got {scale}; leave it out for D**-0.5")
    out, _ = _shared_prefix_attention(
        query,
        key,
        value,
        list(prefix_lengths),
        [length for branches in branch_lengths for length in branches],
        [len(branches) for branches in branch_lengths],
        query.shape[-1] ** -0.5 if scale is None else float(scale),
    )
    return out


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{_OP}: {name} must be [P, heads, L, D], got {list(tensor.shape)}; "
                "put heads before places, as torch's scaled_dot_product_attention wants them"
            )
        if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(
                f"{_OP}: {name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}; convert it first"
            )
        if tensor.dtype != query.dtype:
            raise TypeError(f"{_OP}: {name} must have query's dtype {query.dtype}, got {tensor.dtype}; convert one")
        if tensor.device != query.device:
            raise ValueError(f"{_OP}: {name} must be on query's device {query.device}, got {tensor.device}; move one")
    rows, heads, length, size = query.shape
    key_heads = key.shape[1]
    if size == 0:
        raise ValueError(f"{_OP}: the head size D must be at least 1, got {list(query.shape)}; pass projected heads")
    if key.shape != (rows, key_heads, length, size) or key_heads == 0 or heads % key_heads:
        raise ValueError(
            f"{_OP}: key must be [{rows}, Hkv, {length}, {size}] with Hkv dividing the {heads} heads of query, got "
            f"{list(key.shape)}; pass the keys of the same packed rows"
        )
    if value.shape != key.shape:
        raise ValueError(
            f"{_OP}: value must have key's shape {list(key.shape)}, got {list(value.shape)}; pass them as projected"
        )


def _check_lengths(query: Tensor, prefix_lengths: Sequence[int], branch_lengths: Sequence[Sequence[int]]) -> None:
    rows, _, length, _ = query.shape
    for name, lengths in (("prefix_lengths", prefix_lengths), ("branch_lengths", branch_lengths)):
        if isinstance(lengths, Tensor):
            raise TypeError(f"{_OP}: {name} must be a list, got a tensor; pass its .tolist(), made once per batch")
        if len(lengths) != rows:
            raise ValueError(
                f"{_OP}: {name} must have one entry per packed row, {rows}, got {len(lengths)}; pass every row's"
            )
    for row, (prefix, branches) in enumerate(zip(prefix_lengths, branch_lengths, strict=True)):
        if isinstance(branches, int | Tensor):
            raise TypeError(
                f"{_OP}: branch_lengths must be a list of lists of ints, got {type(branches).__name__} for row {row}; "
                "pass the lengths of all its branches"
            )
        for part in (prefix, *branches):
            if not isinstance(part, int):
                raise TypeError(
                    f"{_OP}: lengths must be ints, got {type(part).__name__} in row {row}; pass lists of ints"
                )
            if part < 0:
                raise ValueError(
                    f"{_OP}: lengths must be >= 0, got {part} in row {row}; pass how many places there are"
                )
        if prefix + sum(branches) > length:
            raise ValueError(
                f"{_OP}: prefix and branches must fit into the row of {length} places, got {prefix} + "
                f"{sum(branches)} in row {row}; pass lengths in tokens of the packed row"
            )
