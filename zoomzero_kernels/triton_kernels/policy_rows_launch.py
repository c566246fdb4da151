"""Launches of the row kernels, policy_rows.py, on CUDA tensors: arguments, grid and choice of the variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero_kernels.triton_kernels.launch import Arguments, Launch
from zoomzero_kernels.triton_kernels.variants import Variant, row_variant

if TYPE_CHECKING:  # these stand above: the passes over rows launch what is here
    from zoomzero_kernels.policy.objectives import PolicyOptions
    from zoomzero_kernels.policy.tensors import LogpOutputs, LogpSlopes, LogpStatistics, PolicyTensors, RowOutputs

# Programs of scale_rows_kernel: enough to fill any GPU, few enough to end at once where there is nothing to do.
_MOST_SCALE_PROGRAMS = 1024
_LOGIT_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def inverse_temperature(temperature: float) -> float:
    """1 / temperature as the float32 kernels take it: bounded, so that its products with 0 and inf stay numbers.

    No logits tell the bounds from what lies beyond: the distribution is all on the largest logit, or uniform.
    """
    return min(max(1.0 / temperature, 1e-36), 1e36)


def _is_aligned(tensor: Tensor) -> bool:
    sizes = (*tensor.stride()[:2], tensor.shape[2])
    return all(size % 16 == 0 for size in sizes) and tensor.data_ptr() % 16 == 0


def _variant(kernel: str, logits: Tensor, grad: Tensor) -> Variant:
    aligned = _is_aligned(logits) and _is_aligned(grad)
    return row_variant(kernel, _LOGIT_TYPES[logits.dtype], aligned=aligned)


def policy_rows_launch(
    logits: Tensor, tensors: PolicyTensors, options: PolicyOptions, outputs: RowOutputs, grad: Tensor | None
) -> Launch:
    """logits and grad [B, T, V] with unit stride in V, the others contiguous [B, T]."""
    target = logits if grad is None else grad
    # What is not there is not read: any pointer will do.
    values = (tensors.advantages if tensor is None else tensor for tensor in tensors[2:])
    arguments: Arguments = (
        logits,
        tensors.token_ids,
        tensors.mask.view(torch.uint8),
        *values,
        *outputs,
        target,
        *logits.stride()[:2],
        *target.stride()[:2],
        *logits.shape[1:],
        inverse_temperature(options.temperature),
        *options[1:],
        *(int(tensor is not None) for tensor in (*tensors[4:], grad)),
    )
    return Launch(_variant("policy_rows_kernel", logits, target), tensors.mask.numel(), arguments)


def logp_rows_launch(
    logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float, outputs: LogpOutputs
) -> Launch:
    """logits [B, T, V] with unit stride in V, the others contiguous."""
    arguments: Arguments = (
        logits,
        token_ids,
        mask.view(torch.uint8),
        *outputs,
        *logits.stride()[:2],
        *logits.shape[1:],
        inverse_temperature(temperature),
    )
    return Launch(_variant("logp_rows_kernel", logits, logits), mask.numel(), arguments)


def logp_rows_backward_launch(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    saved: LogpStatistics,
    slopes: LogpSlopes,
    grad: Tensor,
) -> Launch:
    """logits and grad with unit stride in V, the others contiguous."""
    arguments: Arguments = (
        logits,
        token_ids,
        mask.view(torch.uint8),
        *saved,
        slopes.logps,
        slopes.logps if slopes.entropy is None else slopes.entropy,
        grad,
        *logits.stride()[:2],
        *grad.stride()[:2],
        *logits.shape[1:],
        inverse_temperature(temperature),
        int(slopes.entropy is not None),
    )
    return Launch(_variant("logp_rows_backward_kernel", logits, grad), mask.numel(), arguments)


def scale_rows_launch(grad: Tensor, scale: Tensor) -> Launch:
    """grad [B, T, V] with unit stride in V, multiplied in place by scale, 0-d float32."""
    num_rows = grad.shape[0] * grad.shape[1]
    arguments: Arguments = (grad, scale, *grad.stride()[:2], num_rows, *grad.shape[1:])
    return Launch(_variant("scale_rows_kernel", grad, grad), min(num_rows, _MOST_SCALE_PROGRAMS), arguments)
