"""The policy losses in which a token's term depends on its whole sequence.

Note [Sequence level]: a ratio of sequences (GSPO, "geo_mean"), the weight of "vespo" and the off-policy mask need the
log-probabilities of all tokens before the gradient of any of them is known, so the fused pass cannot be used: the rows
are read a second time in the backward pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoomzero_kernels.policy.objectives import row_options
from zoomzero_kernels.policy.options import LossOptions, limit
from zoomzero_kernels.policy.stored_gradient import with_stored_gradient
from zoomzero_kernels.policy.tensors import GRPOLossOutput, PolicyTensors, RowOutputs, loss_output
from zoomzero_kernels.policy.terms import by_sign, policy_terms

# TRL's bounds of log-ratios in the weight of "vespo".
_LOWEST_LOG_WEIGHT, _LARGEST_LOG_RATIO = math.log(1e-8), 20.0


def _means(values: Tensor, valid: Tensor) -> Tensor:
    """Means [B, 1] over the valid tokens; the others hold 0."""
    return values.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)


def _vespo_factors(difference: Tensor, tokens: PolicyTensors, options: LossOptions) -> Tensor:
    """exp(lambda) * w^k * exp(-lambda * w) of the ratio w of each sequence, [B, T] by the signs of the advantages."""
    log_weight = difference.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).sum(-1, keepdim=True)
    ratio = options["importance_sampling_ratio"]
    if ratio is not None:
        log_ratio = ratio.detach().to(difference.dtype).log().clamp(_LOWEST_LOG_WEIGHT, _LARGEST_LOG_RATIO)
        if ratio.shape[-1] == tokens.mask.shape[-1]:
            log_ratio = torch.where(tokens.mask != 0, log_ratio, 0.0)
        log_weight = log_weight + log_ratio.sum(-1, keepdim=True)
    log_weight = log_weight.clamp(_LOWEST_LOG_WEIGHT, _LARGEST_LOG_RATIO)
    positive = tokens.advantages >= 0
    power = by_sign(positive, options["vespo_k_pos"], options["vespo_k_neg"], difference)
    slope = by_sign(positive, options["vespo_lambda_pos"], options["vespo_lambda_neg"], difference).clamp(min=1e-4)
    return (slope + power * log_weight - slope * log_weight.exp()).exp().nan_to_num(0.0, 0.0, 0.0)


def _kept_sequences(current: Tensor, tokens: PolicyTensors, options: LossOptions) -> Tensor:
    """1 for tokens of advantages >= 0 and of sequences near the policy that sampled, else 0."""
    valid = tokens.mask != 0
    sampled = options["sampling_logps"]
    sampled = tokens.old_logps if sampled is None else sampled
    gap = torch.zeros_like(current) if sampled is None else sampled.detach().to(current.dtype) - current
    # What the sampler could not score says nothing.
    distance = _means(torch.where(valid, gap, 0.0).nan_to_num(nan=0.0), valid)
    return ((tokens.advantages >= 0) | (distance <= limit(options["off_policy_threshold"]))).to(current.dtype)


def _with_factor(tokens: PolicyTensors, factor: Tensor) -> PolicyTensors:
    return tokens._replace(factors=factor if tokens.factors is None else tokens.factors * factor)


def two_pass_loss(
    op: str, logps: Tensor, entropy: Tensor, tensors: PolicyTensors, options: LossOptions
) -> GRPOLossOutput:
    """Loss of differentiable log-probabilities and entropies [B, T], which are 0 on masked tokens."""
    valid = tensors.mask != 0
    current = logps.detach()

    def on_valid(values: Tensor) -> Tensor:
        return torch.where(valid, values.to(current.dtype), 0.0)

    tokens = tensors._replace(
        advantages=on_valid(tensors.advantages),
        old_logps=None if tensors.old_logps is None else on_valid(tensors.old_logps),
        ref_logps=None if tensors.ref_logps is None else on_valid(tensors.ref_logps),
    )
    difference = torch.zeros_like(current) if tokens.old_logps is None else on_valid(current - tokens.old_logps)
    if options["off_policy_threshold"] is not None:
        tokens = _with_factor(tokens, _kept_sequences(current, tokens, options))
    if options["loss_type"] == "vespo":
        tokens = _with_factor(tokens, _vespo_factors(difference, tokens, options))
    counted, flags, of_sequence = valid.to(current.dtype), None, options["importance_sampling_level"] == "sequence"
    if options["loss_type"] == "geo_mean":
        sign, of_sequence = tokens.advantages.sign(), True
        bounded = difference.clamp(-options["clip_low"], options["clip_high"])
        outside = sign * difference > sign * bounded
        flags = torch.where(outside if tokens.factors is None else outside & (tokens.factors > 0), sign, 0.0)
        counted = torch.where(outside | (sign == 0), 0.0, counted)
        difference = torch.where(sign == 0, 0.0, torch.where(outside, bounded, difference))
        tokens = tokens._replace(advantages=_means(tokens.advantages, valid).expand_as(current))
    # On-policy ratios are exactly 1, also where a log-probability is -inf.
    on_policy = tokens.old_logps is None
    log_ratio = _means(difference, valid).expand_as(current) if of_sequence else difference
    terms = policy_terms(current, None if on_policy else log_ratio, tokens, row_options(options))
    results = RowOutputs(*map(on_valid, (terms.loss, current, entropy.detach(), terms.kl, terms.clipped)))
    if flags is not None:
        results = results._replace(clipped=on_valid(flags))
    loss = tokens.total(results.loss, results.entropy)
    if logps.requires_grad:
        through_ratio, direct = terms.ratio_slope * tokens.weights, (terms.slope - terms.ratio_slope) * tokens.weights
        if of_sequence:
            num_valid = valid.sum(-1, keepdim=True).clamp(min=1)
            through_ratio = through_ratio.sum(-1, keepdim=True) / num_valid * counted
        grads = [on_valid(through_ratio + direct)]
        inputs = [logps]
        if tokens.entropy_weights is not None:
            inputs.append(entropy)
            grads.append(-tokens.entropy_weights)
        loss = with_stored_gradient(op, loss, torch.ones_like(loss), tuple(inputs), tuple(grads))
    return loss_output(loss, results, tokens.mask)
