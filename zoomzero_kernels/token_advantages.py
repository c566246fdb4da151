"""Token-selective credit: rewards x credit x segments to normalised advantages of every token.

The reward of a token depends on its response and segment alone, so all statistics come from the counts of valid tokens
by response and segment: one pass over mask and segments, one pass that writes the advantages.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.host import native, registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import check_device, check_mask, checked_mask, describe, values_are_checked
from zoomzero_kernels.triton_kernels import launch
from zoomzero_kernels.triton_kernels.token_advantages_launch import token_advantages_launch
from zoomzero_kernels.triton_kernels.variants import NORMALIZATIONS

_OP = "token_advantages"
UNSCORED = ("error", "skip")


def _kernel_inputs(
    rewards: Tensor, segments: Tensor, credit: Tensor, group_ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tensors as the kernels want them: contiguous, float64 numbers, int64 ids, bool mask."""
    rewards, credit = rewards.detach(), credit.detach()
    _check_finite("rewards", "response {}, reward {}", "leave NaN ones out with unscored='skip'", rewards)
    _check_finite("credit", "reward {}, segment {}", "give 0 where a reward has no say", credit)
    return (
        rewards.double().contiguous(),
        segments.contiguous(),
        credit.double().contiguous(),
        group_ids.long().contiguous(),
        checked_mask(_OP, mask),
    )


def _native(
    rewards: Tensor,
    segments: Tensor,
    credit: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    normalization: int,
    eps: float,
    advantages: Tensor,
) -> int:
    """Write the advantages on the CPU; a segment of a valid token that has no column in credit, or -1."""
    batch, num_tokens = mask.shape
    num_rewards, num_segments = credit.shape
    addresses = (
        native.address(rewards, torch.float64, batch * num_rewards, mask.device),
        native.address(credit, torch.float64, num_rewards * num_segments, mask.device),
        native.address(segments, torch.uint8, batch * num_tokens, mask.device),
        native.address(mask, torch.bool, batch * num_tokens, mask.device),
        native.address(group_ids, torch.int64, batch, mask.device),
    )
    shape = (batch, num_tokens, num_rewards, num_segments)
    out = native.address(advantages, torch.float32, batch * num_tokens, mask.device)
    return _C.token_advantages_cpu(addresses, shape, normalization, eps, out, torch.get_num_threads())


@registration.op("token_advantages", differentiable=False)
def _token_advantages(
    rewards: Tensor,
    segments: Tensor,
    credit: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    normalize: str,
    eps: float,
) -> Tensor:
    advantages = torch.empty(mask.shape, dtype=torch.float32, device=mask.device)
    inputs = _kernel_inputs(rewards, segments, credit, group_ids, mask)
    if mask.device.type == "cpu":
        wrong = _native(*inputs, NORMALIZATIONS.index(normalize), eps, advantages)
        if wrong >= 0:
            raise _segment_error(wrong, credit)
        return advantages
    if values_are_checked(mask):
        beyond = segments[inputs[4] & (segments >= credit.shape[1])]
        if beyond.numel() > 0:
            raise _segment_error(int(beyond[0]), credit)
    launch.run(token_advantages_launch(*inputs, normalize, eps, advantages))
    return advantages


def _check_finite(name: str, place: str, remedy: str, numbers: Tensor) -> None:
    """Reject NaN and inf, which would spread over the whole group, where the values of tensors are checked."""
    # A finite sum, which costs half, proves it; a sum may overflow where no number is infinite.
    if not values_are_checked(numbers) or math.isfinite(numbers.sum()) or bool(numbers.isfinite().all()):
        return
    row, column = (~numbers.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"{_OP}: {name} must be finite, got {numbers[row, column].item()} for {place.format(row, column)}; {remedy}"
    )


def _without_unscored(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards and group ids in which the responses with a NaN form a group of their own whose rewards are all 0.

    Equal rewards give exactly 0, and the other groups never see them. Nothing here waits for the device.
    """
    unscored = rewards.isnan().any(dim=1)
    # Ids from 0 to B - 1 in place of any int64, so that B is free.
    dense = torch.searchsorted(group_ids.sort().values, group_ids)
    scored = rewards.masked_fill(unscored.unsqueeze(1), 0.0)
    return scored, dense.masked_fill(unscored, rewards.shape[0])


def _segment_error(segment: int, credit: Tensor) -> ValueError:
    return ValueError(
        f"{_OP}: segments must be in [0, {credit.shape[1]}) on valid tokens, got {segment}; "
        "give credit a column for every segment"
    )


@torch.library.register_fake("zoomzero::token_advantages")
def _token_advantages_fake(rewards: Tensor, segments: Tensor, *_: Any) -> Tensor:
    return segments.new_empty(segments.shape, dtype=torch.float32)


@takes_arrays
def token_advantages(
    rewards: Tensor,
    segments: Tensor,
    credit: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    *,
    normalize: str = "tokens",
    eps: float = 1e-6,
    unscored: str = "error",
) -> Tensor:
    """Advantage of every token from rewards that are credited to segments of tokens. Not differentiable.

    The reward of a token is ``x[b, t] = sum_r credit[r, segments[b, t]] * rewards[b, r]``.

    Args:
        rewards: [B, R] floating point, finite; see ``unscored`` for NaN.
        segments: [B, T] uint8, the segment of each token in 0..S-1; masked tokens may hold anything.
        credit: [R, S] floating point, the weight with which reward r is credited to segment s.
        group_ids: [B] int64, responses of one prompt share an id; any values in any order.
        mask: [B, T] bool or integer 0/1.
        normalize: "tokens" standardises x over all valid tokens of the group (TokenAdv as published);
            "segments" standardises, for each segment, the per-response reward over the responses of the group;
            "rewards" standardises each reward over the responses of the group before crediting;
            "sequence" gives one advantage a response, from ``sum_r max_s(credit[r, s]) * rewards[b, r]``;
            "none" returns x. Standard deviations are unbiased; a group of one response keeps mean 0 and std 1.
        eps: added to the standard deviation.
        unscored: what a NaN among the rewards of a response means: "error", or "skip" for a response that was not
            scored: it takes no part in the statistics of its group and its tokens get 0.

    Returns:
        float32 [B, T], 0 on masked tokens, exactly 0 in a group (of several responses) whose rewards are all equal.

    Raises:
        ValueError: shapes, devices or options do not fit; on CPU (elsewhere with ZOOMZERO_CHECK_VALUES=1, which waits
            for the GPU) also rewards or credit that are not finite and segments out of range; unchecked the first make
            a group's advantages NaN, the last those of such tokens.
        TypeError: wrong dtype.

    Source: Zoom-Zero, arXiv 2512.14273, token-selective credit assignment.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"{_OP}: unknown normalize, got {normalize!r}; use one of {', '.join(NORMALIZATIONS)}")
    if unscored not in UNSCORED:
        raise ValueError(f"{_OP}: unknown unscored, got {unscored!r}; use one of {', '.join(UNSCORED)}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"{_OP}: eps must be finite and >= 0, got {eps}; the default is 1e-6")
    if rewards.dim() != 2 or not rewards.dtype.is_floating_point:
        raise ValueError(
            f"{_OP}: rewards must be floating point [B, R], got {describe(rewards)}; stack one column per reward"
        )
    if segments.dim() != 2 or segments.dtype != torch.uint8 or segments.shape[0] != rewards.shape[0]:
        raise ValueError(
            f"{_OP}: segments must be uint8 [B, T] with B = {rewards.shape[0]}, got {describe(segments)}; "
            "use the output of token_segments"
        )
    if credit.dim() != 2 or credit.shape[0] != rewards.shape[1] or not 1 <= credit.shape[1] <= 256:
        raise ValueError(
            f"{_OP}: credit must be [R, S] with R = {rewards.shape[1]} and S in 1..256, got {describe(credit)}; "
            "give one row per reward"
        )
    if not credit.dtype.is_floating_point:
        raise TypeError(f"{_OP}: credit must be floating point, got {describe(credit)}; convert with .float()")
    if tuple(group_ids.shape) != (rewards.shape[0],) or group_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{_OP}: group_ids must be int64 [B] with B = {rewards.shape[0]}, got {describe(group_ids)}; "
            "give every response the id of its prompt"
        )
    check_mask(_OP, mask, (segments.shape[0], segments.shape[1]), rewards)
    for name, tensor in (("segments", segments), ("credit", credit), ("group_ids", group_ids)):
        check_device(_OP, name, tensor, rewards)
    if unscored == "skip":
        rewards, group_ids = _without_unscored(rewards, group_ids)
    return _token_advantages(rewards, segments, credit, group_ids, mask, normalize, float(eps))
