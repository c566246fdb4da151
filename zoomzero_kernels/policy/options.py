"""What the policy losses share: options, inputs and outputs by token, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.checks import (
    check_device,
    check_mask,
    check_token_ids,
    check_token_tensor,
    describe,
    values_are_checked,
)
from zoomzero_kernels.policy.weights import Normaliser, check_normaliser, token_weights

IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
# Maps from the ratio to the loss of a token, as numbers for the kernels; 0 is the clipped one of all other loss types.
OBJECTIVES = {"cispo": 1.0, "sapo": 2.0}
LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class GRPOLossOutput(NamedTuple):
    """Loss and its by-products; only ``loss`` is differentiable.

    loss: scalar, normalised as ``loss_type`` says.
    logps, entropy: [B, T] of the policy at ``temperature``, detached, 0 on masked tokens.
    kl: scalar, mean over valid tokens of the KL estimate, 0 without ``ref_logps``.
    clip_fraction: scalar, share of the valid tokens whose ratio was clipped, on the side of their advantage.
    clip_low_fraction, clip_high_fraction: scalars, its parts: clipped from below under a negative advantage, from above
        under a positive one.
    """

    loss: Tensor
    logps: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor
    clip_low_fraction: Tensor
    clip_high_fraction: Tensor


class PolicyTensors(NamedTuple):
    """What a policy loss knows of each token, all [B, T], detached.

    token_ids: int64 or int32.
    mask: bool or integer 0/1; masked tokens may hold anything in the other tensors.
    advantages: floating point.
    weights: share of each token in the loss, 0 on masked tokens.
    old_logps: of the policy that sampled, None where that is the present one.
    ref_logps: of the reference model, None without a KL estimate.
    """

    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor
    old_logps: Tensor | None
    ref_logps: Tensor | None

    def at(self, place: Any) -> PolicyTensors:
        """The same of some tokens: each tensor indexed by ``place``."""
        required = (tensor[place] for tensor in self[:4])
        return PolicyTensors(*required, *(None if tensor is None else tensor[place] for tensor in self[4:]))


class PolicyOptions(NamedTuple):
    """The objective of one token, as all back ends take it: numbers in this order.

    The order is that of PolicyOptions in csrc/policy_rows and of the arguments of policy_rows_kernel. Custom ops take
    it as a list of floats.

    temperature: the logits are divided by it.
    beta: weight of the KL estimate.
    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    kl_clamp: largest KL estimate, inf for no limit.
    unbiased_kl: 1 if the KL estimate is multiplied by the ratio, else 0.
    delta: largest unclipped ratio, inf for no limit.
    objective: the map from ratio to loss, one of OBJECTIVES.
    sapo_temperature_pos, sapo_temperature_neg: steepness of the gate of "sapo" by the sign of the advantage.
    """

    temperature: float = 1.0
    beta: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_clamp: float = math.inf
    unbiased_kl: float = 0.0
    delta: float = math.inf
    objective: float = 0.0
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05


class RowOutputs(NamedTuple):
    """Per-token results [B, T], float32 (float64 for float64 logits), 0 on masked tokens.

    clipped: -1 where the ratio was clipped from below, 1 from above, else 0.
    """

    loss: Tensor
    logps: Tensor
    entropy: Tensor
    kl: Tensor
    clipped: Tensor

    @classmethod
    def zeros(cls, shape: Sequence[int], like: Tensor) -> RowOutputs:
        """For tokens [B, T] of logits or hidden states like these."""
        dtype = compute_dtype(like)
        return cls(*(torch.zeros(shape, dtype=dtype, device=like.device) for _ in cls._fields))


class LogpOutputs(NamedTuple):
    """Results of the pass for log-probabilities, of the dtype that RowOutputs has, 0 on masked tokens.

    logps, entropy: [B, T].
    normaliser: [B, T, 2], the largest logit m and ``log(sum(exp((logits - m) / temperature)))``: as one number, the
        log-sum-exp, they would lose the second's digits under large logits.
    """

    logps: Tensor
    entropy: Tensor
    normaliser: Tensor

    @classmethod
    def zeros(cls, shape: Sequence[int], like: Tensor) -> LogpOutputs:
        """For tokens [B, T] of logits or hidden states like these."""
        dtype = compute_dtype(like)
        logps, entropy = (torch.zeros(shape, dtype=dtype, device=like.device) for _ in range(2))
        return cls(logps, entropy, torch.zeros((*shape, 2), dtype=dtype, device=like.device))


class LogpStatistics(NamedTuple):
    """What the backward pass needs of LogpOutputs, under the same names."""

    entropy: Tensor
    normaliser: Tensor


class LogpSlopes(NamedTuple):
    """Gradients [B, T] of a loss in the log-probabilities and, unless None, in the entropies."""

    logps: Tensor
    entropy: Tensor | None


def limit(value: float | None) -> float:
    """An upper bound as a number: inf for None."""
    return math.inf if value is None else value


def check_options(op: str, options: PolicyOptions) -> None:
    """Reject options outside their range."""
    check_temperature(op, options.temperature)
    beta, clip_low, clip_high, kl_clamp = options.beta, options.clip_low, options.clip_high, options.kl_clamp
    if not 0 <= beta < math.inf:
        raise ValueError(f"{op}: beta must be finite and >= 0, got {beta}; pass beta=0.0 to leave the KL term out")
    if not 0 <= clip_low < 1:
        raise ValueError(f"{op}: clip_low must be in [0, 1), got {clip_low}; the ratio is clipped at 1 - clip_low")
    if not clip_high >= 0:
        raise ValueError(f"{op}: clip_high must be >= 0, got {clip_high}; the ratio is clipped at 1 + clip_high")
    if not kl_clamp > 0:
        raise ValueError(f"{op}: kl_clamp must be > 0, got {kl_clamp}; pass kl_clamp=None for an unclamped estimate")
    if not options.delta > 0:
        raise ValueError(f"{op}: delta must be > 0, got {options.delta}; pass delta=None for an unbounded ratio")
    for name in ("sapo_temperature_pos", "sapo_temperature_neg"):
        if not 0 < getattr(options, name) < math.inf:
            raise ValueError(f"{op}: {name} must be finite and > 0, got {getattr(options, name)}; TRL has 1.0 and 1.05")


def loss_output(
    loss: Tensor, logps: Tensor, entropy: Tensor, kl: Tensor, clipped: Tensor, mask: Tensor
) -> GRPOLossOutput:
    """The loss with the results of its tokens, as RowOutputs holds them: 0 on masked tokens, means over the others."""
    num_valid = mask.ne(0).sum().clamp(min=1).to(clipped.dtype)
    low, high = (clipped < 0).sum() / num_valid, (clipped > 0).sum() / num_valid
    return GRPOLossOutput(loss, logps, entropy, kl.sum() / num_valid, low + high, low, high)


def check_temperature(op: str, temperature: float) -> None:
    """Reject a temperature that is zero, negative or not finite."""
    # Comparisons, not math.isfinite, which torch.compile cannot trace for a symbolic number.
    if not 0 < temperature < math.inf:
        raise ValueError(f"{op}: temperature must be finite and > 0, got {temperature}; pass 1.0 for unscaled logits")


def check_level(op: str, importance_sampling_level: str) -> None:
    """Reject an unknown level of importance sampling."""
    if importance_sampling_level not in IMPORTANCE_SAMPLING_LEVELS:
        valid = ", ".join(IMPORTANCE_SAMPLING_LEVELS)
        raise ValueError(f"{op}: unknown importance_sampling_level, got {importance_sampling_level!r}; use {valid}")


def policy_tensors(
    op: str,
    like: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    normaliser: Normaliser,
) -> PolicyTensors:
    """Check the tensors of a policy loss against ``like``, logits or hidden states [B, T, ...], and pack them."""
    check_normaliser(op, normaliser)
    shape = (like.shape[0], like.shape[1])
    check_token_ids(op, token_ids, shape, like)
    check_mask(op, mask, shape, like)
    if tuple(advantages.shape) not in (shape, shape[:1]):
        raise ValueError(
            f"{op}: advantages must be [B, T] = {list(shape)} or [B] = {[shape[0]]}, got {describe(advantages)}; "
            "give one advantage a token or one a sequence"
        )
    if not advantages.dtype.is_floating_point:
        raise TypeError(f"{op}: advantages must be floating point, got {describe(advantages)}; convert with .float()")
    check_device(op, "advantages", advantages, like)
    for name, tensor in (("old_logps", old_logps), ("ref_logps", ref_logps)):
        if tensor is None:
            continue
        check_token_tensor(op, name, tensor, shape, like)
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{op}: {name} must be floating point, got {describe(tensor)}; pass log-probabilities")
    return PolicyTensors(
        token_ids=token_ids,
        mask=mask,
        advantages=(advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(shape)).detach(),
        weights=token_weights(mask, normaliser, compute_dtype(like)),
        old_logps=None if old_logps is None else old_logps.detach(),
        ref_logps=None if ref_logps is None else ref_logps.detach(),
    )


def with_token_weights(op: str, tensors: PolicyTensors, token_weights: Tensor | None) -> PolicyTensors:
    """The tensors with advantages times the weights: every policy term is of degree one in the advantage.

    Where values are not checked, a weight below 0, which would turn the clipping round, makes its loss NaN.
    """
    if token_weights is None:
        return tensors
    shape = (tensors.mask.shape[0], tensors.mask.shape[1])
    check_token_tensor(op, "token_weights", token_weights, shape, tensors.mask)
    weights = torch.where(tensors.mask != 0, token_weights.detach().to(tensors.weights.dtype), 0.0)
    fits = (weights >= 0) & (weights < math.inf)
    if not torch.compiler.is_compiling() and values_are_checked(weights) and not bool(fits.all()):
        raise ValueError(
            f"{op}: token_weights must be finite and >= 0 on valid tokens, got {weights[~fits][0].item()}; mask such "
            "tokens, or change the sign of their advantages"
        )
    return tensors._replace(advantages=tensors.advantages * torch.where(fits, weights, math.nan))


def check_reference(op: str, tensors: PolicyTensors, options: PolicyOptions) -> None:
    """Demand log-probabilities of the reference where the loss has a KL term."""
    if options.beta > 0 and tensors.ref_logps is None:
        raise ValueError(
            f"{op}: beta > 0 needs ref_logps, got beta={options.beta} and no ref_logps; pass them or set beta=0.0"
        )


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the maths and of the per-token results for logits or hidden states of this dtype."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
