"""What each loss type divides by: the weight of every token in the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.checks import describe

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo")
# Those that divide by a number of tokens, which may span processes and micro-batches.
ITEM_LOSS_TYPES = ("dapo", "cispo")


class Normaliser(NamedTuple):
    """How the losses of tokens become one number.

    loss_type: one of LOSS_TYPES.
    max_completion_length: length in the normaliser of "dr_grpo", the width T if None.
    num_items: tokens in the normaliser of ITEM_LOSS_TYPES, the valid tokens of the batch if None.
    """

    loss_type: str
    max_completion_length: int | None
    num_items: Tensor | float | None


def check_normaliser(op: str, normaliser: Normaliser) -> None:
    """Reject unknown loss types, and lengths and counts that cannot normalise anything."""
    loss_type, max_completion_length, num_items = normaliser
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"{op}: unknown loss_type, got {loss_type!r}; use one of {', '.join(LOSS_TYPES)}")
    if max_completion_length is not None and max_completion_length <= 0:
        raise ValueError(
            f"{op}: max_completion_length must be > 0, got {max_completion_length}; pass the trainer's limit"
        )
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1:
            raise ValueError(f"{op}: num_items must be one number, got {describe(num_items)}; pass the token count")
    elif num_items is not None and not num_items >= 0:
        raise ValueError(f"{op}: num_items must be >= 0, got {num_items}; pass the number of valid tokens")


def token_weights(mask: Tensor, normaliser: Normaliser, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight of every token in the loss, [B, T] of ``dtype``, 0 on masked tokens.

    The weighted sum of the token losses equals TRL's normalisation before its division by the number of gradient
    accumulation steps:

    - ``grpo``, ``sapo``: mean over each sequence, then over the sequences;
    - ``bnpo``: mean over the valid tokens of the batch;
    - ``dr_grpo``: sum over ``B * max_completion_length`` (the width T when it is not given);
    - ``luspo``: sum over each sequence, then mean over the sequences;
    - ``dapo``, ``cispo``: sum over ``num_items`` (the valid tokens of the batch when it is not given).
    """
    loss_type, max_completion_length, num_items = normaliser
    valid = (mask if mask.dtype == torch.bool else mask != 0).to(dtype)
    if loss_type in ("grpo", "sapo"):
        return valid / (valid.sum(-1, keepdim=True).clamp(min=1.0) * max(mask.shape[0], 1))
    if loss_type == "luspo":
        return valid / max(mask.shape[0], 1)
    if loss_type == "dr_grpo":
        length = mask.shape[1] if max_completion_length is None else max_completion_length
        return valid / max(mask.shape[0] * length, 1)
    if loss_type in ITEM_LOSS_TYPES and num_items is not None:
        if isinstance(num_items, Tensor):
            return valid / num_items.to(device=mask.device, dtype=dtype).clamp(min=1.0)
        return valid / max(float(num_items), 1.0)
    return valid / valid.sum().clamp(min=1.0)
