"""What the policy losses share: options, outputs, and the checks of their arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.checks import check_device, check_mask, check_token_ids, check_token_tensor, describe
from zoomzero_kernels.policy.weights import LOSS_TYPES

IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class GRPOLossOutput(NamedTuple):
    """Loss and its by-products; only ``loss`` is differentiable.

    loss: scalar, normalised as ``loss_type`` says.
    logps, entropy: [B, T] of the policy at ``temperature``, detached, 0 on masked tokens.
    kl: scalar, mean over valid tokens of the KL estimate, 0 without ``ref_logps``.
    clip_fraction: scalar, share of the valid tokens whose ratio was clipped.
    """

    loss: Tensor
    logps: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor


class RowOutputs(NamedTuple):
    """Per-token results [B, T], float32 (float64 for float64 logits), 0 on masked tokens."""

    loss: Tensor
    logps: Tensor
    entropy: Tensor
    kl: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class PolicyOptions:
    """The per-token objective; ``kl_clamp`` is inf when the KL estimate is not clamped."""

    temperature: float
    beta: float
    clip_low: float
    clip_high: float
    kl_clamp: float
    unbiased_kl: bool = False


def policy_options(
    op: str,
    temperature: float,
    beta: float,
    clip_low: float,
    clip_high: float,
    kl_clamp: float | None,
    unbiased_kl: bool,
) -> PolicyOptions:
    """Check the scalar options and pack them."""
    check_temperature(op, temperature)
    if not 0 <= beta < math.inf:
        raise ValueError(f"{op}: beta must be finite and >= 0, got {beta}; pass beta=0.0 to leave the KL term out")
    if not 0 <= clip_low < 1:
        raise ValueError(f"{op}: clip_low must be in [0, 1), got {clip_low}; the ratio is clipped at 1 - clip_low")
    if not clip_high >= 0:
        raise ValueError(f"{op}: clip_high must be >= 0, got {clip_high}; the ratio is clipped at 1 + clip_high")
    if kl_clamp is not None and not kl_clamp > 0:
        raise ValueError(f"{op}: kl_clamp must be > 0, got {kl_clamp}; pass kl_clamp=None for an unclamped estimate")
    limit = math.inf if kl_clamp is None else float(kl_clamp)
    return PolicyOptions(float(temperature), float(beta), float(clip_low), float(clip_high), limit, bool(unbiased_kl))


def check_temperature(op: str, temperature: float) -> None:
    """Reject a temperature that is zero, negative or not finite."""
    # Comparisons, not math.isfinite, which torch.compile cannot trace for a symbolic number.
    if not 0 < temperature < math.inf:
        raise ValueError(f"{op}: temperature must be finite and > 0, got {temperature}; pass 1.0 for unscaled logits")


def check_choices(op: str, loss_type: str, importance_sampling_level: str) -> None:
    """Reject unknown names, listing the valid ones."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"{op}: unknown loss_type, got {loss_type!r}; use one of {', '.join(LOSS_TYPES)}")
    if importance_sampling_level not in IMPORTANCE_SAMPLING_LEVELS:
        valid = ", ".join(IMPORTANCE_SAMPLING_LEVELS)
        raise ValueError(f"{op}: unknown importance_sampling_level, got {importance_sampling_level!r}; use {valid}")


def check_policy_tensors(
    op: str,
    like: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    beta: float,
) -> None:
    """Check the [B, T] tensors of a policy loss against ``like``, whose first two dimensions are B and T."""
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
    if beta > 0 and ref_logps is None:
        raise ValueError(f"{op}: beta > 0 needs ref_logps, got beta={beta} and no ref_logps; pass them or set beta=0.0")


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the maths and of the per-token results for logits or hidden states of this dtype."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
