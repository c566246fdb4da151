"""Plain-torch truth of grpo_loss and linear_grpo_loss, with autograd as the truth of their gradients."""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import LossOptions, checked_options
from zoomzero_kernels.policy.tensors import GRPOLossOutput


def _normalise(loss: Tensor, mask: Tensor, options: LossOptions) -> Tensor:
    """[B, T] token losses to the scalar, with the normalisers of TRL's GRPOTrainer._compute_loss."""
    loss_type, num_valid = options["loss_type"], mask.sum()
    if loss_type in ("grpo", "sapo", "geo_mean"):
        return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / max(loss.shape[0], 1)
    if loss_type == "luspo":
        return (loss * mask).sum() / max(loss.shape[0], 1)
    if loss_type == "bnpo":
        return (loss * mask).sum() / num_valid.clamp(min=1.0)
    if loss_type == "dr_grpo":
        length = options["max_completion_length"] or loss.shape[1]
        return (loss * mask).sum() / max(loss.shape[0] * length, 1)
    num_items = options["num_items"]
    total = num_valid if num_items is None else torch.as_tensor(num_items, device=loss.device)
    return (loss * mask).sum() / total.clamp(min=1.0)


class _Tokens(NamedTuple):
    """Clean tensors [B, T]: masked tokens hold 0. log_ratio is that of the token, ratio that of the chosen level."""

    logps: Tensor
    log_ratio: Tensor
    ratio: Tensor
    advantages: Tensor
    valid: Tensor


def _mean_of_sequence(values: Tensor, valid: Tensor) -> Tensor:
    mean = values.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1.0)
    return mean.expand_as(values)


def _clipped(tokens: _Tokens, options: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    low, high = 1 - options["clip_low"], 1 + options["clip_high"]
    capped = tokens.ratio.clamp(max=options["delta"] or math.inf)
    loss = -torch.min(capped * tokens.advantages, tokens.ratio.clamp(low, high) * tokens.advantages)
    return loss, (tokens.advantages < 0) & (capped < low), (tokens.advantages > 0) & (capped > high)


def _clipped_log_ratio(log_ratio: Tensor, advantages: Tensor, options: LossOptions) -> Tensor:
    sign = advantages.sign()
    bounded = log_ratio.clamp(-options["clip_low"], options["clip_high"])
    return sign * torch.min(sign * log_ratio, sign * bounded)


def _geometric_mean(tokens: _Tokens, options: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    least = _clipped_log_ratio(tokens.log_ratio, tokens.advantages, options)
    loss = -_mean_of_sequence(tokens.advantages, tokens.valid) * _mean_of_sequence(least, tokens.valid).exp()
    too_low = (tokens.advantages < 0) & (tokens.log_ratio < -options["clip_low"])
    return loss, too_low, (tokens.advantages > 0) & (tokens.log_ratio > options["clip_high"])


def _trust_region(tokens: _Tokens, options: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    logps, old = tokens.logps.detach(), (tokens.logps - tokens.log_ratio).detach()
    p, q = logps.exp(), old.exp()
    moved = p - q
    if options["loss_type"] == "dppo_kl":
        kl = q * (old - logps) + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()
        moved = torch.where(p > q, kl, torch.where(p < q, -kl, 0.0))
    too_high = (tokens.advantages > 0) & (moved > options["clip_high"])
    too_low = (tokens.advantages <= 0) & (moved < -options["clip_low"])
    factor = torch.where(too_low | too_high, 0.0, tokens.ratio.detach().clamp(max=options["ratio_cap"]))
    return -factor * tokens.advantages * tokens.logps, too_low & (tokens.advantages < 0), too_high


def _vespo_weight(tokens: _Tokens, options: LossOptions) -> Tensor:
    """TRL's get_gamma_weights."""
    log_weight = tokens.log_ratio.detach().clamp(-20, 20).sum(-1, keepdim=True)
    ratio = options["importance_sampling_ratio"]
    if ratio is not None:
        log_ratio = ratio.to(log_weight.dtype).log().clamp(math.log(1e-8), 20.0)
        log_weight = log_weight + (torch.where(tokens.valid, log_ratio, 0.0) if ratio.shape[1] > 1 else log_ratio).sum(
            -1, keepdim=True
        )
    log_weight = log_weight.clamp(math.log(1e-8), 20.0)
    k = torch.full_like(tokens.logps, options["vespo_k_neg"]).detach()
    rate = torch.full_like(k, options["vespo_lambda_neg"])
    k[tokens.advantages >= 0] = options["vespo_k_pos"]
    rate[tokens.advantages >= 0] = options["vespo_lambda_pos"]
    rate = rate.clamp(min=1e-4)
    return (rate + k * log_weight - rate * log_weight.exp()).exp().nan_to_num(0.0, 0.0, 0.0)


def _policy_term(tokens: _Tokens, options: LossOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each token without its KL term, and whether its ratio was clipped from below and from above."""
    loss_type, logps, log_ratio, ratio, advantages = options["loss_type"], *tokens[:4]
    nothing = torch.zeros_like(advantages, dtype=torch.bool)
    if loss_type == "cispo":
        factor = ratio.clamp(max=options["clip_high"]).detach() * advantages
        loss = -factor * torch.where(factor == 0, 0.0, logps)
        return loss, nothing, (advantages > 0) & (ratio > options["clip_high"])
    if loss_type == "sapo":
        tau = torch.full_like(ratio, options["sapo_temperature_neg"])
        tau[advantages > 0] = options["sapo_temperature_pos"]
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages, nothing, nothing
    if loss_type == "vespo":
        return -_vespo_weight(tokens, options) * advantages * logps, nothing, nothing
    if loss_type == "gpg":
        return -advantages * logps, nothing, nothing
    if loss_type == "dro":
        return -advantages * logps + 0.5 * options["dro_beta"] * log_ratio.square(), nothing, nothing
    if loss_type in ("dppo_tv", "dppo_kl"):
        return _trust_region(tokens, options)
    if loss_type == "geo_mean":
        return _geometric_mean(tokens, options)
    return _clipped(tokens, options)


def _factors(tokens: _Tokens, options: LossOptions) -> Tensor:
    """Product of all that the policy term is multiplied by."""
    valid, dtype = tokens.valid, tokens.logps.dtype
    factors = valid.to(dtype)
    if options["token_weights"] is not None:
        factors = factors * torch.where(valid, options["token_weights"].to(dtype), 0.0)
    if options["importance_sampling_ratio"] is not None and options["loss_type"] != "vespo":
        factors = factors * torch.where(valid, options["importance_sampling_ratio"].to(dtype), 0.0)
    if options["entropy_mask"] is not None:
        factors = factors * options["entropy_mask"].to(dtype)
    threshold, sampled = options["off_policy_threshold"], options["sampling_logps"]
    if threshold is not None:
        gap = -tokens.log_ratio if sampled is None else sampled.to(dtype) - tokens.logps
        distance = _mean_of_sequence(torch.where(valid, gap.detach(), 0.0).nan_to_num(nan=0.0), valid)
        factors = factors * ((tokens.advantages >= 0) | (distance <= threshold))
    return factors


def _k3(gap: Tensor, kl_clamp: float | None) -> Tensor:
    """min(exp(gap) - gap - 1, kl_clamp)."""
    estimate = gap.exp() - gap - 1
    if kl_clamp is None:
        return estimate
    # Zero the difference where the clamp acts, so that no 0 * inf reaches the gradient.
    inside = estimate <= kl_clamp
    bounded = torch.where(inside, gap, 0.0)
    return torch.where(inside, bounded.exp() - bounded - 1, kl_clamp)


def _distributions(logits: Tensor, token_ids: Tensor, valid: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens and entropies, [B, T]."""
    clean = torch.where(valid.unsqueeze(-1), logits if logits.dtype == torch.float64 else logits.float(), 0.0)
    clean = clean * options["logit_scale"]
    cap = options["logit_softcap"]
    clean = clean if cap is None else cap * torch.tanh(clean / cap)
    log_probs = torch.log_softmax(clean / options["temperature"], dim=-1)
    logps = log_probs.gather(-1, torch.where(valid, token_ids.long(), 0).unsqueeze(-1)).squeeze(-1)
    impossible = log_probs == -math.inf
    entropy = -(log_probs.exp() * torch.where(impossible, 0.0, log_probs)).sum(-1)
    return logps, torch.where(valid, entropy, 0.0)


def grpo_loss(
    logits: Tensor, token_ids: Tensor, advantages: Tensor, mask: Tensor, **options: Unpack[LossOptions]
) -> GRPOLossOutput:
    """Policy losses with per-token advantages and k3 KL, as a chain of ordinary torch calls.

    With ``logp = log_softmax(logits / temperature)[token]``, ``ratio = exp(logp - old_logp)`` and
    ``d = ref_logp - logp``, the loss of a token is
    ``-min(ratio * A, clamp(ratio, 1 - clip_low, 1 + clip_high) * A) + beta * clamp(exp(d) - d - 1, max=kl_clamp)``.
    ``unbiased_kl`` multiplies the KL estimate by the ratio; ``delta`` bounds the first ratio;
    ``token_weights`` and others multiply the first term. The other loss types replace the first term: "cispo":
    ``-min(ratio, clip_high) * A * logp`` with a detached ratio; "sapo": ``-sigmoid(tau * (ratio - 1)) * 4 / tau * A``
    with tau by the sign of A; the rest in the functions above.
    At the sequence level the log-ratio is replaced by its mean over the valid tokens of the sequence.
    logits [B, T, V] in float32 or float64, other tensors [B, T]; ``loss`` is differentiable by autograd.
    """
    chosen = checked_options("grpo_loss", options)
    valid = mask.bool()
    logps, entropy = _distributions(logits, token_ids, valid, chosen)
    per_token = advantages.to(logps.dtype) if advantages.dim() == 2 else advantages.to(logps.dtype).unsqueeze(1)
    per_token = torch.where(valid, per_token.expand_as(logps), 0.0)
    given = chosen["old_logps"]
    old = logps.detach() if given is None else torch.where(valid, given.to(logps.dtype), 0.0)
    log_ratio = torch.where(valid, logps - old, 0.0)
    of_level = log_ratio
    if chosen["importance_sampling_level"] == "sequence":
        of_level = _mean_of_sequence(log_ratio, valid)
    elif chosen["loss_type"] == "geo_mean":
        of_level = _mean_of_sequence(_clipped_log_ratio(log_ratio, per_token, chosen), valid)
    # No ratio, however large, makes a loss of an advantage of 0.
    ratio = torch.where(per_token == 0, 0.0, of_level).exp()
    tokens = _Tokens(torch.where(valid, logps, 0.0), log_ratio, ratio, per_token, valid)
    token_loss, too_low, too_high = _policy_term(tokens, chosen)
    factors = _factors(tokens, chosen)
    token_loss = torch.where(factors == 0, 0.0, factors * token_loss)
    kl = torch.zeros_like(logps)
    if chosen["ref_logps"] is not None:
        kl = _k3(torch.where(valid, chosen["ref_logps"].to(logps.dtype) - logps, 0.0), chosen["kl_clamp"])
        kl = of_level.exp() * kl if chosen["unbiased_kl"] else kl
        token_loss = token_loss + chosen["beta"] * kl
    num_valid = valid.sum().clamp(min=1)
    low, high = (flag & (factors > 0) for flag in (too_low, too_high))
    active = valid if chosen["entropy_mask"] is None else valid & chosen["entropy_mask"].bool()
    bonus = (entropy * active).sum() / active.sum().clamp(min=1)
    loss = _normalise(token_loss, valid, chosen)
    low_fraction, high_fraction = (flag.to(logps.dtype).sum() / num_valid for flag in (low, high))
    return GRPOLossOutput(
        loss=chosen["loss_scale"] * (loss - chosen["entropy_coef"] * bonus),
        logps=torch.where(valid, logps.detach(), 0.0),
        entropy=entropy.detach(),
        kl=(torch.where(valid, kl.detach(), 0.0)).sum() / num_valid,
        clip_fraction=low_fraction + high_fraction,
        clip_low_fraction=low_fraction,
        clip_high_fraction=high_fraction,
        clipped=high.to(logps.dtype) - low.to(logps.dtype),
    )


def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    **options: Unpack[LossOptions],
) -> GRPOLossOutput:
    """``grpo_loss`` of ``hidden @ weight.T + bias``; hidden [B, T, D], weight [V, D], bias [V] or None."""
    clean = torch.where(mask.bool().unsqueeze(-1), hidden, 0.0)
    logits = torch.nn.functional.linear(clean, weight, bias)
    return grpo_loss(logits, token_ids, advantages, mask, **options)
