"""The objective of one token: from its ratio and log-probabilities to its loss and slope, in plain torch.

The kernels compute the same, in csrc/policy_rows and in triton_kernels/policy_rows.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.policy import objectives
from zoomzero_kernels.policy.objectives import PolicyOptions
from zoomzero_kernels.policy.tensors import PolicyTensors


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


class _Token(NamedTuple):
    """What a map takes of each token; low and high are its bounds for the sign of the advantage."""

    logps: Tensor
    log_ratio: Tensor
    ratio: Tensor
    advantages: Tensor
    low: Tensor
    high: Tensor


def _divergence(token: _Token, objective: float) -> Tensor:
    """How far the token's probability p has moved from the old policy's q: p - q, or the KL of the two outcomes."""
    p, q = token.logps.exp(), (token.logps - token.log_ratio).exp()
    difference = torch.where(token.log_ratio == 0, 0.0, p - q)
    if objective == objectives.TOTAL_VARIATION:
        return difference
    # As verl, which keeps the logarithm finite by the same 1e-8. A token that was impossible has no first term.
    kl = torch.where(q == 0, 0.0, -q * token.log_ratio) + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()
    return torch.where(difference == 0, 0.0, difference.sign() * kl)


def _map(token: _Token, options: PolicyOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, slope and what is compared with the bounds; see Note [Maps] in objectives.py."""
    logps, log_ratio, ratio, advantages, low, high = token
    if options.objective == objectives.SQUARE:
        loss = 0.5 * low * log_ratio.square() - torch.where(advantages == 0, 0.0, advantages * logps)
        return loss, low * log_ratio - advantages, ratio
    if options.objective == objectives.GATE:
        distance = low * (ratio - 1)
        gate = torch.sigmoid(distance)
        # 1 - gate without cancellation.
        return -4 * gate / low * advantages, -4 * gate * torch.sigmoid(-distance) * ratio * advantages, ratio
    measure = ratio
    if options.objective == objectives.CLIP:
        # Where the ratio stands at a bound, it does not follow the log-probability.
        fixed = (ratio < low) | (ratio > high)
        return -ratio.clamp(low, high) * advantages, torch.where(fixed, 0.0, -ratio * advantages), measure
    if options.objective == objectives.WEIGHTED:
        factor = ratio.clamp(low, high)
    else:
        measure = _divergence(token, options.objective)
        factor = torch.where((measure < low) | (measure > high), 0.0, ratio.clamp(max=options.ratio_cap))
    slope = -factor * advantages
    # A token that the policy has given up, of ratio 0 and log-probability -inf, costs nothing.
    return torch.where(slope == 0, 0.0, slope * logps), slope, measure


def _kl(logps: Tensor, ratio: Tensor, ref_logps: Tensor, options: PolicyOptions) -> tuple[Tensor, Tensor]:
    """The estimate and its derivative in the log-probability."""
    delta = ref_logps.to(logps.dtype) - logps
    growth = torch.expm1(delta)
    # An infinite estimate, which the clamp bounds, would become inf - inf.
    kl = torch.where(torch.isposinf(growth), growth, growth - delta)
    outside = kl > options.kl_clamp
    kl = torch.where(outside, options.kl_clamp, kl)
    if options.unbiased_kl:
        # Inside the clamp kl - growth is -delta, which the subtraction would lose.
        return ratio * kl, ratio * torch.where(outside, kl, -delta)
    return kl, -torch.where(outside, 0.0, growth)


def by_sign(positive: Tensor, if_positive: float, otherwise: float, like: Tensor) -> Tensor:
    """One of two numbers by token; of two bare numbers torch.where would make float32."""
    return torch.where(positive, torch.full_like(like, if_positive), otherwise)


def policy_terms(logps: Tensor, log_ratio: Tensor | None, tokens: PolicyTensors, options: PolicyOptions) -> PolicyTerms:
    """Terms of tokens with these log-probabilities and log-ratios.

    Without ``log_ratio`` the ratio is exactly 1 (on-policy), also where ``logps`` is -inf. A token of advantage 0 has
    no policy term, whatever its ratio, except that of SQUARE; a token of factor 0 has none.
    """
    advantages = tokens.advantages.to(logps.dtype)
    log_ratio = torch.zeros_like(logps) if log_ratio is None else log_ratio
    # Bounded, because inf * 0 would be NaN.
    ratio = log_ratio.exp().clamp(max=torch.finfo(logps.dtype).max)
    positive = advantages > 0
    low = by_sign(positive, options.low_pos, options.low_neg, logps)
    high = by_sign(positive, options.high_pos, options.high_neg, logps)
    loss, slope, measure = _map(_Token(logps, log_ratio, ratio, advantages, low, high), options)
    too_low, too_high = (measure < options.flag_low) & (advantages < 0), (measure > options.flag_high) & positive
    clipped = too_high.to(logps.dtype) - too_low.to(logps.dtype)
    nothing = torch.zeros_like(positive) if options.objective == objectives.SQUARE else advantages == 0
    if tokens.factors is not None:
        factors = tokens.factors.to(logps.dtype)
        nothing = nothing | (factors == 0)
        loss, slope, clipped = factors * loss, factors * slope, torch.where(factors > 0, clipped, 0.0)
    loss, slope = torch.where(nothing, 0.0, loss), torch.where(nothing, 0.0, slope)
    through_ratio = options.objective in (objectives.CLIP, objectives.GATE)
    ratio_slope = slope if through_ratio else torch.zeros_like(slope)
    if tokens.ref_logps is None:
        return PolicyTerms(loss, slope, ratio_slope, torch.zeros_like(logps), clipped)
    kl, kl_slope = _kl(logps, ratio, tokens.ref_logps, options)
    if options.beta > 0:
        loss, slope = loss + options.beta * kl, slope + options.beta * kl_slope
        if options.unbiased_kl:
            ratio_slope = ratio_slope + options.beta * kl
    return PolicyTerms(loss, slope, ratio_slope, kl, clipped)
