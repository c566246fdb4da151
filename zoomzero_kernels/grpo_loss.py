"""Policy loss of GRPO from logits: log-softmax, entropy, clipped ratio, KL and the gradient of the logits in one pass.

The forward pass computes the gradient of the logits at once, because it then reads the logits a single time; the
backward pass only multiplies it by the incoming gradient. See Note [Sequence level] for the case where it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from zoomzero_kernels.host import registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import checked_mask_and_ids, describe
from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.objectives import PolicyOptions, reads_twice, row_options
from zoomzero_kernels.policy.options import LossOptions, checked_options, takes_options
from zoomzero_kernels.policy.stored_gradient import scaled_once, stored_scale, with_stored_gradient
from zoomzero_kernels.policy.tensors import (
    LOGITS_DTYPES,
    GRPOLossOutput,
    PolicyTensors,
    RowOutputs,
    compute_dtype,
    loss_output,
    policy_tensors,
)
from zoomzero_kernels.policy.two_passes import two_pass_loss
from zoomzero_kernels.selective_logps import masked_logps

_OP = "grpo_loss"
# Loss, logps, entropy, kl, clipped, scale that the gradient still needs, gradient of the logits (empty if not wanted).
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
_InplaceOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _run(
    logits: Tensor, tensors: Sequence[Tensor | None], options: Sequence[float], grad: Tensor | None
) -> _InplaceOutputs:
    tokens = PolicyTensors(*tensors)  # type: ignore[arg-type]
    valid, ids = checked_mask_and_ids(_OP, tokens.token_ids, tokens.mask, logits.shape[-1])
    scale = stored_scale(logits, tokens)
    scaled = tokens.divided_by(scale)._replace(token_ids=ids, mask=valid)
    results = rows.policy_rows(logits, scaled, PolicyOptions(*options), grad)
    loss = tokens.total(results.loss, results.entropy)
    return loss, results.logps, results.entropy, results.kl, results.clipped, scale


@registration.op("grpo_loss", differentiable=True)
def _grpo_loss(
    logits: Tensor, tensors: Sequence[Tensor | None], options: Sequence[float], needs_grad: bool
) -> _Outputs:
    """tensors: PolicyTensors; options: PolicyOptions."""
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if needs_grad else None
    outputs = _run(logits, tensors, options, grad)
    return (*outputs, logits.new_empty(0) if grad is None else grad)


@torch.library.register_fake("zoomzero::grpo_loss")
def _grpo_loss_fake(
    logits: Tensor, tensors: Sequence[Tensor | None], options: Sequence[float], needs_grad: bool
) -> _Outputs:
    grad = logits.new_empty(logits.shape if needs_grad else (0,))
    return (*_grpo_loss_inplace_fake(logits, tensors, options), grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    ctx.has_grad = inputs[-1]
    ctx.save_for_backward(output[5], output[6])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    others = (None,) * (ctx.num_inputs - 1)
    if grad_loss is None:
        return (None, *others)
    if not ctx.has_grad:
        raise RuntimeError("grpo_loss: the op stored no gradient, got needs_grad=False; call it with needs_grad=True")
    scale, grad = ctx.saved_tensors
    return (scaled_once(_OP, grad, grad_loss * scale), *others)


torch.library.register_autograd("zoomzero::grpo_loss", _backward, setup_context=_setup_context)


@torch.library.custom_op("zoomzero::grpo_loss_", mutates_args={"logits"})
def _grpo_loss_inplace(logits: Tensor, tensors: Sequence[Tensor | None], options: Sequence[float]) -> _InplaceOutputs:
    return _run(logits, tensors, options, logits)


@_grpo_loss_inplace.register_fake
def _grpo_loss_inplace_fake(
    logits: Tensor, tensors: Sequence[Tensor | None], options: Sequence[float]
) -> _InplaceOutputs:
    dtype, shape = compute_dtype(logits), logits.shape[:2]
    logps, entropy, kl, clipped = (logits.new_empty(shape, dtype=dtype) for _ in range(4))
    scalar = logits.new_empty((), dtype=dtype)
    return scalar, logps, entropy, kl, clipped, logits.new_empty((), dtype=torch.float32)


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 3 or logits.dtype not in LOGITS_DTYPES:
        raise ValueError(f"{_OP}: logits must be floating point [B, T, V], got {describe(logits)}; do not flatten them")
    if logits.shape[-1] == 0:
        raise ValueError(f"{_OP}: logits must have V >= 1, got {describe(logits)}; pass the scores of the vocabulary")


def _check_inplace(logits: Tensor) -> None:
    """Reject logits of which several share memory, as in an expanded tensor: a gradient for each needs its own."""
    reach = 1
    for stride, size in sorted(zip(logits.stride(), logits.shape, strict=True)):
        if size > 1 and stride < reach and logits.numel() > 0:
            raise ValueError(
                f"{_OP}: inplace=True needs logits with memory of their own, got strides {list(logits.stride())} for "
                f"shape {list(logits.shape)}; pass inplace=False or logits.contiguous()"
            )
        reach += (size - 1) * stride


@takes_arrays
@takes_options
def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    inplace: bool = False,
    **options: Unpack[LossOptions],
) -> GRPOLossOutput:
    """Clipped GRPO policy loss with per-token advantages, fused over the vocabulary.

    Args:
        logits: [B, T, V] float32, bfloat16, float16 or float64; ``logits[:, t]`` predicts ``token_ids[:, t]``.
        token_ids: [B, T] int64 or int32; masked tokens may hold any value.
        advantages: [B, T], or [B] for one a sequence, floating point.
        mask: [B, T] bool or integer 0/1. Masked tokens cost no work and may hold NaN or inf in any tensor.
        inplace: the gradient takes the memory of the logits, which must not be read after this call.
        options: see LossOptions.

    Returns:
        GRPOLossOutput. Maths and results are float32, or float64 for float64 logits. Log-probabilities are at most 0,
        however large the logits. NaN or inf among the logits of a valid token shows in its ``logps`` and, unless its
        advantage is 0 and ``beta`` too, in the loss and in its gradient: a token of advantage 0 has no policy term,
        whatever its logits and its ratio, and a token without a slope has a gradient of exactly 0.

    Raises:
        ValueError: shapes, devices or options do not fit; ``inplace`` with logits that share memory; on CPU (elsewhere
            with ZOOMZERO_CHECK_VALUES=1, which waits for the GPU) also token ids out of range; unchecked they give NaN.
        TypeError: wrong dtype, or an option that does not exist.
        RuntimeError: a second derivative is asked of it.

    Source: the objective of GRPO (arXiv 2402.03300) with the asymmetric clipping of DAPO (arXiv 2503.14476).
    """
    chosen = checked_options(_OP, options)
    _check_logits(logits)
    tensors = policy_tensors(_OP, logits, token_ids, advantages, mask, chosen)
    numbers, cap = row_options(chosen), chosen["logit_softcap"]
    if cap is not None:
        # What masked tokens hold must not reach the derivative of the cap, where 0 * NaN would be NaN.
        clean = torch.where(mask.unsqueeze(-1) != 0, logits, 0.0).to(compute_dtype(logits))
        logits = cap * torch.tanh(clean * (chosen["logit_scale"] / cap))
    if reads_twice(chosen):
        logps, entropy = masked_logps(_OP, logits, token_ids, mask, numbers.temperature)
        return two_pass_loss(_OP, logps, entropy, tensors, chosen)
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    data = logits.detach()
    if inplace and needs_grad:
        _check_inplace(logits)
        loss, logps, entropy, kl, clipped, scale = _grpo_loss_inplace(data, tensors, numbers)
        grad = data
    else:
        loss, logps, entropy, kl, clipped, scale, grad = _grpo_loss(data, tensors, numbers, needs_grad)
    if needs_grad:
        loss = with_stored_gradient(_OP, loss, scale, (logits,), (grad,))
    return loss_output(loss, RowOutputs(loss, logps, entropy, kl, clipped), mask)
