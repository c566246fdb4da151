"""What the policy losses share: options, output, argument checks and the normalisers of the loss types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.checks import values_are_checked

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
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


def describe(tensor: Tensor) -> str:
    """Dtype and shape of a tensor, as the error messages print them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_token_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int, int], like: Tensor) -> None:
    """Demand a tensor of one value a token on the device of ``like``."""
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{op}: {name} must be [B, T] = {list(shape)}, got {describe(tensor)}; align it with token_ids"
        )
    check_device(op, name, tensor, like)


def check_device(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """Demand that a tensor lies where ``like`` lies."""
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {tensor.device}; move it with .to()")


def check_token_ids(op: str, token_ids: Tensor, shape: tuple[int, int], like: Tensor) -> None:
    """Demand int32 or int64 token ids [B, T]; their range is checked by the implementations."""
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: token_ids must be int64 or int32, got {describe(token_ids)}; convert with .long()")
    check_token_tensor(op, "token_ids", token_ids, shape, like)


def check_mask(op: str, mask: Tensor, shape: tuple[int, int], like: Tensor) -> None:
    """Demand a mask of truth values: bool, or an integer type holding 0 and 1."""
    if mask.dtype.is_floating_point or mask.dtype.is_complex:
        raise TypeError(f"{op}: mask must be bool or integer 0/1, got {describe(mask)}; convert with .bool()")
    check_token_tensor(op, "mask", mask, shape, like)


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


def checked_mask(op: str, mask: Tensor) -> Tensor:
    """Contiguous bool mask; the values of an integer mask may be checked. Runs inside the op implementations."""
    if mask.dtype == torch.bool:
        return mask.contiguous()
    if values_are_checked(mask) and bool(((mask != 0) & (mask != 1)).any()):
        received = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"{op}: mask must hold 0 and 1 only, got {received}; pass mask.bool()")
    return mask.ne(0).contiguous()


def checked_mask_and_ids(op: str, token_ids: Tensor, mask: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Bool mask and int64 ids; their values may be checked, ids of masked tokens may be anything.

    Runs inside the op implementations, because a check of values cannot be traced by torch.compile.
    """
    valid = checked_mask(op, mask)
    if values_are_checked(mask):
        wrong = valid & ((token_ids < 0) | (token_ids >= vocab_size))
        if bool(wrong.any()):
            received = token_ids[wrong][0].item()
            raise ValueError(
                f"{op}: token_ids must be in [0, {vocab_size}) on valid tokens, got {received}; mask such tokens"
            )
    return valid, token_ids.to(torch.int64).contiguous()


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the maths and of the per-token results for logits or hidden states of this dtype."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def token_weights(
    mask: Tensor,
    loss_type: str,
    max_completion_length: int | None,
    num_items: Tensor | float | None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weight of every token in the loss, [B, T] of ``dtype``, 0 on masked tokens.

    The weighted sum of the token losses equals TRL's normalisation before its division by the number of gradient
    accumulation steps:

    - ``grpo``: mean over each sequence, then over the sequences;
    - ``bnpo``: mean over the valid tokens of the batch;
    - ``dr_grpo``: sum over ``B * max_completion_length`` (the width T when it is not given);
    - ``dapo``: sum over ``num_items`` (the valid tokens of the batch when it is not given).
    """
    valid = (mask if mask.dtype == torch.bool else mask != 0).to(dtype)
    if loss_type == "grpo":
        return valid / (valid.sum(-1, keepdim=True).clamp(min=1.0) * max(mask.shape[0], 1))
    if loss_type == "dr_grpo":
        length = mask.shape[1] if max_completion_length is None else max_completion_length
        return valid / max(mask.shape[0] * length, 1)
    if loss_type == "dapo" and num_items is not None:
        if isinstance(num_items, Tensor):
            return valid / num_items.to(device=mask.device, dtype=dtype).clamp(min=1.0)
        return valid / max(float(num_items), 1.0)
    return valid / valid.sum().clamp(min=1.0)


def check_normaliser(op: str, max_completion_length: int | None, num_items: Tensor | float | None) -> None:
    """Reject lengths and counts that cannot normalise anything."""
    if max_completion_length is not None and max_completion_length <= 0:
        raise ValueError(
            f"{op}: max_completion_length must be > 0, got {max_completion_length}; pass the trainer's limit"
        )
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise ValueError(f"{op}: num_items must be one number, got {describe(num_items)}; pass the token count")
    elif num_items is not None and not num_items >= 0:
        raise ValueError(f"{op}: num_items must be >= 0, got {num_items}; pass the number of valid tokens")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B, T] values, already 0 on masked tokens, over the valid tokens; 0 when there is none."""
    return values.sum() / mask.ne(0).sum().clamp(min=1)
