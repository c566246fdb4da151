"""Checks that several ops share: devices, masks, token ids, and whether the values of tensors are looked at."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from zoomzero_kernels.host import cuda_kernels

OPTION = "ZOOMZERO_CHECK_VALUES"


def values_are_checked(tensor: Tensor) -> bool:
    """Always on the CPU; on a GPU, where a look at a value waits for all work before it, if ZOOMZERO_CHECK_VALUES=1."""
    return tensor.device.type == "cpu" or os.environ.get(OPTION) == "1"


def require_cuda_build(op: str, device: torch.device) -> None:
    """Raise where ``device`` is a GPU that the CUDA kernels cannot serve.

    Raises:
        RuntimeError: there are none for its driver, nor an NVRTC that compiles them.
        ValueError: the GPU is older than compute capability 8.0.
    """
    if device.type != "cuda":
        return
    if cuda_kernels.way() is None:
        raise RuntimeError(f"{op}: {cuda_kernels.what_is_missing()}")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise ValueError(
            f"{op}: a GPU must have compute capability 8.0 or newer, got {capability[0]}.{capability[1]} on {device}; "
            "move the tensors to the CPU"
        )


def describe(tensor: Tensor) -> str:
    """Dtype and shape of a tensor, as the error messages print them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_token_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int, int], like: Tensor) -> None:
    """Demand a tensor of one value per token on the device of ``like``."""
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


def checked_mask(op: str, mask: Tensor) -> Tensor:
    """Contiguous bool mask; the values of an integer mask may be checked. Runs inside the op implementations."""
    if mask.dtype == torch.bool:
        return mask.contiguous()
    if values_are_checked(mask) and bool(((mask != 0) & (mask != 1)).any()):
        received = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"{op}: mask must hold 0 and 1 only, got {received}; pass mask.bool()")
    return mask.ne(0).contiguous()


def _all_between(token_ids: Tensor, vocab_size: int) -> bool:
    """Whether all ids are in range, masked ones too, which is the usual case and quickly seen."""
    if token_ids.numel() == 0:
        return True
    low, high = torch.aminmax(token_ids)
    return int(low) >= 0 and int(high) < vocab_size


def checked_mask_and_ids(op: str, token_ids: Tensor, mask: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Bool mask and int64 ids; their values may be checked, ids of masked tokens may be anything.

    Runs inside the op implementations, because a check of values cannot be traced by torch.compile.
    """
    valid = checked_mask(op, mask)
    if values_are_checked(mask) and not _all_between(token_ids, vocab_size):
        wrong = valid & ((token_ids < 0) | (token_ids >= vocab_size))
        if bool(wrong.any()):
            received = token_ids[wrong][0].item()
            raise ValueError(
                f"{op}: token_ids must be in [0, {vocab_size}) on valid tokens, got {received}; mask such tokens"
            )
    return valid, token_ids.to(torch.int64).contiguous()
