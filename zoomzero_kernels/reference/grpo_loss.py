"""Plain-torch truth of grpo_loss and linear_grpo_loss, with autograd as the truth of their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import GRPOLossOutput


def _normalise(
    loss: Tensor, mask: Tensor, loss_type: str, max_completion_length: int | None, num_items: Tensor | float | None
) -> Tensor:
    """[B, T] token losses to the scalar, with the normalisers of TRL's GRPOTrainer._compute_loss."""
    num_valid = mask.sum()
    if loss_type in ("grpo", "sapo"):
        return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / max(loss.shape[0], 1)
    if loss_type == "luspo":
        return (loss * mask).sum() / max(loss.shape[0], 1)
    if loss_type == "bnpo":
        return (loss * mask).sum() / num_valid.clamp(min=1.0)
    if loss_type == "dr_grpo":
        length = loss.shape[1] if max_completion_length is None else max_completion_length
        return (loss * mask).sum() / max(loss.shape[0] * length, 1)
    total = num_valid if num_items is None else torch.as_tensor(num_items, device=loss.device)
    return (loss * mask).sum() / total.clamp(min=1.0)


def _policy_term(
    loss_type: str, logps: Tensor, ratio: Tensor, advantages: Tensor, bounds: tuple[float, float, float], tau: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each token without its KL term, and whether its ratio was clipped from below and from above.

    bounds: clip_low, clip_high and delta.
    """
    clip_low, clip_high, delta = bounds
    nothing = torch.zeros_like(advantages, dtype=torch.bool)
    if loss_type == "cispo":
        factor = ratio.clamp(max=clip_high).detach() * advantages
        loss = -factor * torch.where(factor == 0, 0.0, logps)
        return loss, nothing, (advantages > 0) & (ratio > clip_high)
    if loss_type == "sapo":
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages, nothing, nothing
    capped = ratio.clamp(max=delta)
    loss = -torch.min(capped * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    return loss, (advantages < 0) & (capped < 1 - clip_low), (advantages > 0) & (capped > 1 + clip_high)


def _k3(gap: Tensor, kl_clamp: float | None) -> Tensor:
    """min(exp(gap) - gap - 1, kl_clamp)."""
    estimate = gap.exp() - gap - 1
    if kl_clamp is None:
        return estimate
    # Zero the difference where the clamp acts, so that no 0 * inf reaches the gradient.
    inside = estimate <= kl_clamp
    bounded = torch.where(inside, gap, 0.0)
    return torch.where(inside, bounded.exp() - bounded - 1, kl_clamp)


def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    temperature: float = 1.0,
    beta: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_clamp: float | None = 10.0,
    unbiased_kl: bool = False,
    delta: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    num_items: Tensor | float | None = None,
    importance_sampling_level: str = "token",
    token_weights: Tensor | None = None,
) -> GRPOLossOutput:
    """Clipped policy loss with per-token advantages and k3 KL, as a chain of ordinary torch calls.

    With ``logp = log_softmax(logits / temperature)[token]``, ``ratio = exp(logp - old_logp)`` and
    ``d = ref_logp - logp``, the loss of a token is
    ``-min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A) + beta * clamp(exp(d) - d - 1, max=kl_clamp)``.
    ``unbiased_kl`` multiplies the KL estimate by the ratio; ``delta`` bounds the first ratio;
    ``token_weights`` multiply the first term.
    "cispo": ``-min(ratio, clip_high) * A * logp`` with a detached ratio; "sapo":
    ``-sigmoid(tau * (ratio - 1)) * 4 / tau * A`` with tau by the sign of A.
    At the sequence level the log-ratio is replaced by its mean over the valid tokens of the sequence.
    logits [B, T, V] in float32 or float64, other tensors [B, T]; ``loss`` is differentiable by autograd.
    """
    valid = mask.bool()
    clean = torch.where(valid.unsqueeze(-1), logits if logits.dtype == torch.float64 else logits.float(), 0.0)
    ids = torch.where(valid, token_ids.long(), 0)
    log_probs = torch.log_softmax(clean / temperature, dim=-1)
    logps = log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    per_token = advantages.to(logps.dtype) if advantages.dim() == 2 else advantages.to(logps.dtype).unsqueeze(1)
    per_token = torch.where(valid, per_token.expand_as(logps), 0.0)
    old = logps.detach() if old_logps is None else torch.where(valid, old_logps.to(logps.dtype), 0.0)
    log_ratio = torch.where(valid, logps - old, 0.0)
    if importance_sampling_level == "sequence":
        log_ratio = (log_ratio.sum(-1) / valid.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(logps)
    # No ratio, however large, makes a loss of an advantage of 0.
    ratio = torch.where(per_token == 0, 0.0, log_ratio).exp()
    bounds = (clip_low, clip_high, math.inf if delta is None else delta)
    tau = torch.where(per_token > 0, sapo_temperature_pos, sapo_temperature_neg).to(logps.dtype)
    token_loss, too_low, too_high = _policy_term(loss_type, logps, ratio, per_token, bounds, tau)
    counts = valid
    if token_weights is not None:
        factors = torch.where(valid, token_weights.to(logps.dtype), 0.0)
        token_loss, counts = factors * token_loss, factors > 0
    kl = torch.zeros_like(logps)
    if ref_logps is not None:
        kl = _k3(torch.where(valid, ref_logps.to(logps.dtype) - logps, 0.0), kl_clamp)
        kl = log_ratio.exp() * kl if unbiased_kl else kl
        token_loss = token_loss + beta * kl
    num_valid = valid.sum().clamp(min=1)
    probabilities = log_probs.detach().exp()
    plogp = torch.where(probabilities > 0, probabilities * log_probs.detach(), 0.0)
    low, high = ((flag & counts).to(logps.dtype).sum() / num_valid for flag in (too_low, too_high))
    return GRPOLossOutput(
        loss=_normalise(token_loss, valid, loss_type, max_completion_length, num_items),
        logps=torch.where(valid, logps.detach(), 0.0),
        entropy=torch.where(valid, -plogp.sum(-1), 0.0),
        kl=(torch.where(valid, kl.detach(), 0.0)).sum() / num_valid,
        clip_fraction=low + high,
        clip_low_fraction=low,
        clip_high_fraction=high,
    )


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    **options: object,
) -> GRPOLossOutput:
    """``grpo_loss`` of ``hidden @ weight.T + bias``; hidden [B, T, D], weight [V, D], bias [V] or None."""
    clean = torch.where(mask.bool().unsqueeze(-1), hidden, 0.0)
    logits = torch.nn.functional.linear(clean, weight, bias)
    return grpo_loss(logits, token_ids, advantages, mask, **options)  # type: ignore[arg-type]
