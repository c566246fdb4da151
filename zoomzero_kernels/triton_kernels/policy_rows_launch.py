"""Launches of the row kernels, policy_rows.py, on CUDA tensors: arguments, grid and choice of the variant."""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import PolicyOptions, RowOutputs
from zoomzero_kernels.triton_kernels.launch import Arguments, Launch
from zoomzero_kernels.triton_kernels.variants import Variant, row_variant

_LOGIT_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _is_aligned(tensor: Tensor) -> bool:
    sizes = (*tensor.stride()[:2], tensor.shape[2])
    return all(size % 16 == 0 for size in sizes) and tensor.data_ptr() % 16 == 0


def _variant(kernel: str, logits: Tensor, grad: Tensor) -> Variant:
    aligned = _is_aligned(logits) and _is_aligned(grad)
    return row_variant(kernel, _LOGIT_TYPES[logits.dtype], aligned=aligned)


def policy_rows_launch(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: PolicyOptions,
    outputs: RowOutputs,
    grad: Tensor | None,
) -> Launch:
    """logits and grad [B, T, V] with unit stride in V, the others contiguous [B, T]."""
    target = logits if grad is None else grad
    arguments: Arguments = (
        logits,
        token_ids,
        mask.view(torch.uint8),
        advantages,
        weights,
        advantages if old_logps is None else old_logps,
        advantages if ref_logps is None else ref_logps,
        *outputs,
        target,
        *logits.stride()[:2],
        *target.stride()[:2],
        mask.shape[1],
        logits.shape[2],
        1.0 / options.temperature,
        options.beta,
        options.clip_low,
        options.clip_high,
        options.kl_clamp,
        int(options.unbiased_kl),
        int(old_logps is not None),
        int(ref_logps is not None),
        int(grad is not None),
    )
    return Launch(_variant("policy_rows_kernel", logits, target), mask.numel(), arguments)


def logp_rows_launch(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    logps: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
) -> Launch:
    """logits [B, T, V] with unit stride in V, the others contiguous."""
    arguments: Arguments = (
        logits,
        token_ids,
        mask.view(torch.uint8),
        logps,
        entropy,
        normaliser,
        *logits.stride()[:2],
        mask.shape[1],
        logits.shape[2],
        1.0 / temperature,
    )
    return Launch(_variant("logp_rows_kernel", logits, logits), mask.numel(), arguments)


def logp_rows_backward_launch(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    grad: Tensor,
) -> Launch:
    """logits and grad with unit stride in V, the others contiguous."""
    arguments: Arguments = (
        logits,
        token_ids,
        mask.view(torch.uint8),
        entropy,
        normaliser,
        grad_logps,
        grad_logps if grad_entropy is None else grad_entropy,
        grad,
        *logits.stride()[:2],
        *grad.stride()[:2],
        mask.shape[1],
        logits.shape[2],
        1.0 / temperature,
        int(grad_entropy is not None),
    )
    return Launch(_variant("logp_rows_backward_kernel", logits, grad), mask.numel(), arguments)
