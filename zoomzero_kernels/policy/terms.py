"""The objective of one token: from its ratio and log-probabilities to its loss and slope, in plain torch.

The kernels compute the same, in csrc/policy_rows and in triton_kernels/policy_rows.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import OBJECTIVES, PolicyOptions


class PolicyTerms(NamedTuple):
    """What the objective makes of each token; tensors of one shape.

    loss: of the token.
    slope: derivative of the loss in the token's log-probability, where the ratio is that of the token.
    ratio_slope: its part that comes through the ratio: the derivative in the log-ratio.
    kl: the estimate, 0 without a reference.
    clipped: -1 where the ratio was clipped from below under a negative advantage, 1 from above under a positive one.
    """

    loss: Tensor
    slope: Tensor
    ratio_slope: Tensor
    kl: Tensor
    clipped: Tensor


def _clip(ratio: Tensor, advantages: Tensor, options: PolicyOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, slope and clip flag of -min(min(ratio, delta) * A, clip(ratio) * A)."""
    low, high = 1 - options.clip_low, 1 + options.clip_high
    capped = ratio.clamp(max=options.delta)
    unclipped, bounded = capped * advantages, ratio.clamp(low, high) * advantages
    takes_bounded = bounded < unclipped
    # Where the ratio that counts stands at a bound, it does not follow the log-probability.
    fixed = torch.where(takes_bounded, (ratio < low) | (ratio > high), ratio > options.delta)
    too_low, too_high = (capped < low) & (advantages < 0), (capped > high) & (advantages > 0)
    return (
        -torch.where(takes_bounded, bounded, unclipped),
        torch.where(fixed, 0.0, -ratio * advantages),
        too_high.to(ratio.dtype) - too_low.to(ratio.dtype),
    )


def _cispo(logps: Tensor, ratio: Tensor, advantages: Tensor, options: PolicyOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The same of -min(ratio, clip_high) * A * logp, whose ratio is detached."""
    slope = -ratio.clamp(max=options.clip_high) * advantages
    clipped = (ratio > options.clip_high) & (advantages > 0)
    # A token that the policy has given up, of ratio 0 and log-probability -inf, costs nothing.
    return torch.where(slope == 0, 0.0, slope * logps), slope, clipped.to(ratio.dtype)


def _sapo(ratio: Tensor, advantages: Tensor, options: PolicyOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The same of -sigmoid(tau * (ratio - 1)) * 4 / tau * A; nothing is clipped."""
    tau = torch.where(advantages > 0, options.sapo_temperature_pos, options.sapo_temperature_neg).to(ratio.dtype)
    distance = tau * (ratio - 1)
    gate = torch.sigmoid(distance)
    # 1 - gate without cancellation.
    slope = -4 * gate * torch.sigmoid(-distance) * ratio * advantages
    return -4 * gate / tau * advantages, slope, torch.zeros_like(ratio)


def policy_terms(
    logps: Tensor, log_ratio: Tensor | None, advantages: Tensor, ref_logps: Tensor | None, options: PolicyOptions
) -> PolicyTerms:
    """Terms of tokens with these log-probabilities, log-ratios and advantages.

    Without ``log_ratio`` the ratio is exactly 1 (on-policy), also where ``logps`` is -inf. A token of advantage 0 has
    no policy term, whatever its ratio.
    """
    advantages = advantages.to(logps.dtype)
    # Bounded, because inf * 0 would be NaN.
    ratio = torch.ones_like(logps) if log_ratio is None else log_ratio.exp().clamp(max=torch.finfo(logps.dtype).max)
    nothing = advantages == 0
    if options.objective == OBJECTIVES["cispo"]:
        loss, slope, clipped = _cispo(logps, ratio, advantages, options)
    elif options.objective == OBJECTIVES["sapo"]:
        loss, slope, clipped = _sapo(ratio, advantages, options)
    else:
        loss, slope, clipped = _clip(ratio, advantages, options)
    loss, slope = torch.where(nothing, 0.0, loss), torch.where(nothing, 0.0, slope)
    # The factor of "cispo" is detached: what it multiplies is the log-probability itself.
    ratio_slope = torch.zeros_like(slope) if options.objective == OBJECTIVES["cispo"] else slope
    if ref_logps is None:
        return PolicyTerms(loss, slope, ratio_slope, torch.zeros_like(logps), clipped)
    delta = ref_logps.to(logps.dtype) - logps
    growth = torch.expm1(delta)
    # An infinite estimate, which the clamp bounds, would become inf - inf.
    kl = torch.where(torch.isposinf(growth), growth, growth - delta)
    outside = kl > options.kl_clamp
    kl = torch.where(outside, options.kl_clamp, kl)
    kl_slope = -torch.where(outside, 0.0, growth)
    if options.unbiased_kl:
        # Inside the clamp kl - growth is -delta, which the subtraction would lose.
        kl, kl_slope = ratio * kl, ratio * torch.where(outside, kl, -delta)
    if options.beta > 0:
        loss = loss + options.beta * kl
        slope = slope + options.beta * kl_slope
        if options.unbiased_kl:
            ratio_slope = ratio_slope + options.beta * kl
    return PolicyTerms(loss, slope, ratio_slope, kl, clipped)
