"""The policy loss with one importance ratio per sequence (GSPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import GRPOLossOutput, PolicyOptions
from zoomzero_kernels.policy.weights import masked_mean


def sequence_level_loss(
    logps: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: PolicyOptions,
) -> GRPOLossOutput:
    """Loss with one importance ratio a sequence, from differentiable log-probabilities [B, T].

    Note [Sequence level]: the ratio of a sequence needs the log-probabilities of all its tokens before the gradient of
    any of them is known, so the fused pass cannot be used; the [B, T] maths below is left to autograd and the rows are
    read a second time in the backward pass.
    """
    valid = mask != 0
    old = logps.detach() if old_logps is None else torch.where(valid, old_logps.to(logps.dtype), 0.0)
    credit = torch.where(valid, advantages.to(logps.dtype), 0.0)
    mean_log_ratio = (logps - old).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    ratio = mean_log_ratio.exp()
    unclipped = ratio * credit
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * credit
    token_loss = -torch.minimum(unclipped, bounded)
    kl = torch.zeros_like(logps)
    if ref_logps is not None:
        delta = torch.where(valid, ref_logps.to(logps.dtype), 0.0) - logps
        inside = torch.expm1(delta) - delta <= options.kl_clamp
        delta = torch.where(inside, delta, 0.0)
        kl = torch.where(valid, torch.where(inside, torch.expm1(delta) - delta, options.kl_clamp), 0.0)
        kl = ratio * kl if options.unbiased_kl else kl
        token_loss = token_loss + options.beta * kl
    clipped = ((bounded < unclipped) & valid).to(logps.dtype)
    return GRPOLossOutput(
        loss=(token_loss * weights).sum(),
        logps=logps.detach(),
        entropy=entropy.detach(),
        kl=masked_mean(kl.detach(), mask),
        clip_fraction=masked_mean(clipped, mask),
    )
