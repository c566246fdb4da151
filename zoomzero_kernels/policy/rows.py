"""The pass over rows of logits that all policy losses share, and the choice of the back end that runs it.

A row is the logits of one token. Only valid rows are read, and the gradient may be written over the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.policy import rows_eager
from zoomzero_kernels.policy.options import PolicyOptions, RowOutputs
from zoomzero_kernels.triton_kernels import launch, policy_rows_launch


def back_end(logits: Tensor) -> str:
    """Who runs the rows: "native" on the CPU, "triton" on CUDA, "eager" torch for float64 and for other devices."""
    if logits.dtype == torch.float64:
        return "eager"
    return {"cpu": "native", "cuda": "triton"}.get(logits.device.type, "eager")


def _unit_stride(logits: Tensor) -> Tensor:
    """Logits whose last stride is 1, as the kernels want them; slices of the other dimensions need no copy."""
    return logits if logits.shape[-1] == 1 or logits.stride(-1) == 1 else logits.contiguous()


def _values(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


def _maybe_values(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _values(tensor)


def _zeros(logits: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=logits.device)


def policy_rows(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: PolicyOptions,
    grad: Tensor | None,
) -> RowOutputs:
    """Token losses and, if ``grad`` is given, the gradient of their weighted sum in the logits.

    logits [B, T, V] any strides; token_ids int64, mask bool, advantages, weights, old_logps, ref_logps [B, T];
    grad [B, T, V], which may be ``logits`` itself, is overwritten: 0 on masked rows.
    """
    chosen = back_end(logits)
    if chosen == "eager":
        return rows_eager.policy_rows(logits, token_ids, mask, advantages, weights, old_logps, ref_logps, options, grad)
    outputs = RowOutputs(*(_zeros(logits, *mask.shape) for _ in range(5)))
    target = None if grad is None else _unit_stride(grad)
    tensors = (
        _unit_stride(logits),
        token_ids.contiguous(),
        mask.contiguous(),
        _values(advantages),
        _values(weights),
        _maybe_values(old_logps),
        _maybe_values(ref_logps),
    )
    if chosen == "native":
        numbers = (options.beta, options.clip_low, options.clip_high, options.kl_clamp, float(options.unbiased_kl))
        _C.policy_rows(*tensors, options.temperature, numbers, outputs, target)
    else:
        launch.run(policy_rows_launch.policy_rows_launch(*tensors, options, outputs, target))
    if grad is not None and target is not None and target is not grad:
        grad.copy_(target)
    return outputs


def logp_rows(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability [B, T], entropy [B, T] and normaliser [B, T, 2] of each token, 0 where the mask is False.

    The normaliser holds the largest scaled logit m and ``log(sum(exp(z - m)))``: their sum, the log-sum-exp, would lose
    the second number's digits under large logits.
    """
    chosen = back_end(logits)
    if chosen == "eager":
        return rows_eager.logp_rows(logits, token_ids, mask, temperature)
    logps, entropy = (_zeros(logits, *mask.shape) for _ in range(2))
    normaliser = _zeros(logits, *mask.shape, 2)
    inputs = (_unit_stride(logits), token_ids.contiguous(), mask.contiguous(), temperature)
    if chosen == "native":
        _C.logp_rows(*inputs, logps, entropy, normaliser)
    else:
        launch.run(policy_rows_launch.logp_rows_launch(*inputs, logps, entropy, normaliser))
    return logps, entropy, normaliser


def logp_rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    temperature: float,
    grad: Tensor,
) -> None:
    """Write the gradient of ``logp_rows`` into ``grad`` [B, T, V], which may be ``logits`` itself.

    With z = logits / temperature, d logp / d z_i = [i == token] - p_i and d entropy / d z_i = -p_i (log p_i + entropy).
    """
    chosen = back_end(logits)
    if chosen == "eager":
        rows_eager.logp_rows_backward(
            logits, token_ids, mask, entropy, normaliser, grad_logps, grad_entropy, temperature, grad
        )
        return
    arguments = (
        _unit_stride(logits),
        token_ids.contiguous(),
        mask.contiguous(),
        temperature,
        _values(entropy),
        _values(normaliser),
        _values(grad_logps),
        _maybe_values(grad_entropy),
        grad,
    )
    if chosen == "native":
        _C.logp_rows_backward(*arguments)
    else:
        launch.run(policy_rows_launch.logp_rows_backward_launch(*arguments))
