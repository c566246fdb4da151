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
from zoomzero_kernels.attention.blocks import Inputs, Results, blocks_of, flat_layout
from zoomzero_kernels.host.arrays import takes_arrays

_OP = "shared_prefix_attention"


# layout: see `flat_layout`.
@torch.library.custom_op("zoomzero::shared_prefix_attention", mutates_args=())
def _shared_prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    return merged.forward(flash.kernel_for(query), Inputs(query, key, value, scale), blocks_of(layout))


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
    layout: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs, results = Inputs(query, key, value, scale), Results(grad, out, sums)
    return merged.backward(flash.kernel_for(query), inputs, results, blocks_of(layout))


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
    return (*_shared_prefix_attention_backward(grad, *ctx.saved_tensors, *ctx.options), *(None for _ in ctx.options))


_shared_prefix_attention.register_autograd(_backward, setup_context=_setup_context)


@takes_arrays
def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[Sequence[int]],
    *,
    groups_per_row: Sequence[int] | None = None,
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
        prefix_lengths: one int per group, 0 for one without a prefix; a row holds one group unless told.
        branch_lengths: one list of ints per group, its branches in order; any number of any lengths, 0 too.
        groups_per_row: P ints, how many groups [prefix | branches] lie one after the other in each row, blind to each
            other: groups of unequal lengths need no padding.
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
    if groups_per_row is None:
        groups_per_row = [1] * query.shape[0]
    _check_groups(query, prefix_lengths, branch_lengths, groups_per_row)
    _check_lengths(query, prefix_lengths, branch_lengths, groups_per_row)
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{_OP}: scale must be finite, got {scale}; leave it out for D**-0.5")
    out, _ = _shared_prefix_attention(
        query,
        key,
        value,
        flat_layout(prefix_lengths, branch_lengths, groups_per_row),
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


def _check_groups(query: Tensor, prefix_lengths: Any, branch_lengths: Any, groups_per_row: Any) -> None:
    named = {"prefix_lengths": prefix_lengths, "branch_lengths": branch_lengths, "groups_per_row": groups_per_row}
    for name, lengths in named.items():
        if isinstance(lengths, Tensor):
            raise TypeError(f"{_OP}: {name} must be a list, got a tensor; pass its .tolist(), made once per batch")
    if len(groups_per_row) != query.shape[0]:
        raise ValueError(
            f"{_OP}: groups_per_row must have one entry per packed row, {query.shape[0]}, got {len(groups_per_row)}; "
            "leave it out where each row holds one group"
        )
    for name in ("prefix_lengths", "branch_lengths"):
        if len(named[name]) != sum(groups_per_row):
            raise ValueError(
                f"{_OP}: {name} must have one entry per group, {sum(groups_per_row)}, got {len(named[name])}; "
                "pass every group's"
            )


def _check_lengths(
    query: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[Sequence[int]],
    groups_per_row: Sequence[int],
) -> None:
    totals: list[int] = []
    for group, (prefix, branches) in enumerate(zip(prefix_lengths, branch_lengths, strict=True)):
        # A tuple of types: dynamo of torch 2.9 cannot trace a union of types.
        if isinstance(branches, (int, Tensor)):
            raise TypeError(
                f"{_OP}: branch_lengths must be a list of lists of ints, got {type(branches).__name__} for group "
                f"{group}; pass the lengths of all its branches"
            )
        for part in (prefix, *branches):
            if not isinstance(part, int):
                raise TypeError(
                    f"{_OP}: lengths must be ints, got {type(part).__name__} in group {group}; pass lists of ints"
                )
            if part < 0:
                raise ValueError(f"{_OP}: lengths must be >= 0, got {part} in group {group}; pass numbers of tokens")
        totals.append(prefix + sum(branches))
    left = iter(totals)
    for row, num_groups in enumerate(groups_per_row):
        used = sum(next(left) for _ in range(num_groups))
        if used > query.shape[2]:
            raise ValueError(
                f"{_OP}: prefixes and branches must fit into the row of {query.shape[2]} places, got {used} in row "
                f"{row}; pass lengths in tokens of the packed row"
            )
