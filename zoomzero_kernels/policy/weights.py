"""How token losses become one number: the weight of every token in the loss, and in the entropy bonus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoomzero_kernels.host.checks import check_device, check_token_tensor, values_are_checked
from zoomzero_kernels.policy.objectives import LOSS_TYPES
from zoomzero_kernels.policy.options import LossOptions


def _on(mask: Tensor, value: Tensor | float, dtype: torch.dtype) -> Tensor | float:
    return value.detach().to(device=mask.device, dtype=dtype).reshape(()) if isinstance(value, Tensor) else value


def token_weights(mask: Tensor, options: LossOptions, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of every token in the loss, [B, T] of ``dtype``, 0 on masked tokens.

    The weighted sum of the token losses equals TRL's normalisation before its division by the number of gradient
    accumulation steps, by the normaliser of the loss type:

    - ``sequence_means``: mean over each sequence, then over the sequences;
    - ``sequence_sums``: sum over each sequence, then mean over the sequences;
    - ``tokens``: mean over the valid tokens of the batch;
    - ``width``: sum over ``B * max_completion_length`` (the width T when it is not given);
    - ``items``: sum over ``num_items`` (the valid tokens of the batch when it is not given).

    All of it times ``loss_scale``.
    """
    normaliser = LOSS_TYPES[options["loss_type"]].normaliser
    valid = (mask if mask.dtype == torch.bool else mask != 0).to(dtype)
    scale = _on(mask, options["loss_scale"], dtype)
    share = valid if isinstance(scale, float) and scale == 1.0 else valid * scale
    if normaliser == "sequence_means":
        return share / (valid.sum(-1, keepdim=True).clamp(min=1.0) * max(mask.shape[0], 1))
    if normaliser == "sequence_sums":
        return share / max(mask.shape[0], 1)
    if normaliser == "width":
        length = mask.shape[1] if options["max_completion_length"] is None else options["max_completion_length"]
        return share / max(mask.shape[0] * length, 1)
    num_items = options["num_items"]
    if normaliser == "items" and num_items is not None:
        if isinstance(num_items, Tensor):
            return share / num_items.to(device=mask.device, dtype=dtype).reshape(()).clamp(min=1.0)
        return share / max(float(num_items), 1.0)
    return share / valid.sum().clamp(min=1.0)


def entropy_weights(mask: Tensor, options: LossOptions, dtype: torch.dtype) -> Tensor | None:
    """What the entropy of every token is multiplied by before it is taken from the loss, [B, T]; None for nothing."""
    coefficient = options["entropy_coef"]
    if isinstance(coefficient, float | int) and coefficient == 0:
        return None
    active = mask != 0 if options["entropy_mask"] is None else (mask != 0) & (options["entropy_mask"] != 0)
    share = active.to(dtype) / active.sum().clamp(min=1).to(dtype)
    return share * _on(mask, coefficient, dtype) * _on(mask, options["loss_scale"], dtype)


def policy_factors(op: str, mask: Tensor, options: LossOptions, dtype: torch.dtype) -> Tensor | None:
    """Factor of the policy term of every token, [B, T], NaN where it is not one; None where all are 1.

    Where values are not checked, a weight below 0, which would turn the clipping round, makes its loss NaN.
    """
    shape = (mask.shape[0], mask.shape[1])
    factors = None
    for name in ("token_weights", "importance_sampling_ratio"):
        given: Tensor | None = options[name]
        # The sequence's weight takes the ratio up: see two_passes.py.
        if given is None or (name == "importance_sampling_ratio" and options["loss_type"] == "vespo"):
            continue
        weights = _checked_weights(op, name, given, mask, dtype)
        factors = weights if factors is None else factors * weights
    chosen = options["entropy_mask"]
    if chosen is not None:
        check_token_tensor(op, "entropy_mask", chosen, shape, mask)
        factors = (chosen != 0).to(dtype) if factors is None else torch.where(chosen != 0, factors, 0.0)
    return factors


def _checked_weights(op: str, name: str, given: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    shape = (mask.shape[0], mask.shape[1])
    if name == "importance_sampling_ratio" and tuple(given.shape) == (shape[0], 1):
        check_device(op, name, given, mask)
        given = given.expand(shape)
    check_token_tensor(op, name, given, shape, mask)
    weights = torch.where(mask != 0, given.detach().to(dtype), 0.0)
    fits = (weights >= 0) & (weights < math.inf)
    if not torch.compiler.is_compiling() and values_are_checked(weights) and not bool(fits.all()):
        raise ValueError(
            f"{op}: {name} must be finite and >= 0 on valid tokens, got {weights[~fits][0].item()}; mask such "
            "tokens, or change the sign of their advantages"
        )
    return torch.where(fits, weights, math.nan)
