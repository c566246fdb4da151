"""Policy loss of GRPO from logits: log-softmax, entropy, clipped ratio, KL and the gradient of the logits in one pass.

The forward pass computes the gradient of the logits at once, because it then reads the logits a single time; the
backward pass only multiplies it by the incoming gradient. See Note [Sequence level] for the case where it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.arrays import takes_arrays
from zoomzero_kernels.checks import checked_mask_and_ids, describe
from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.options import (
    LOGITS_DTYPES,
    OBJECTIVES,
    GRPOLossOutput,
    PolicyOptions,
    PolicyTensors,
    check_level,
    check_options,
    check_reference,
    compute_dtype,
    limit,
    loss_output,
    policy_tensors,
    with_token_weights,
)
from zoomzero_kernels.policy.sequence_level import sequence_level_loss
from zoomzero_kernels.policy.stored_gradient import scaled_once, stored_scale, with_stored_gradient
from zoomzero_kernels.policy.weights import Normaliser
from zoomzero_kernels.selective_logps import masked_logps

_OP = "grpo_loss"
# Loss, logps, entropy, kl, clipped, scale that the gradient still needs, gradient of the logits (empty if not wanted).
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
_InplaceOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _run(logits: Tensor, tensors: PolicyTensors, options: PolicyOptions, grad: Tensor | None) -> _InplaceOutputs:
    valid, ids = checked_mask_and_ids(_OP, tensors.token_ids, tensors.mask, logits.shape[-1])
    scale = stored_scale(logits, tensors.weights)
    scaled = tensors._replace(token_ids=ids, mask=valid, weights=tensors.weights / scale)
    output = rows.policy_rows(logits, scaled, options, grad)
    loss = (output.loss * tensors.weights).sum()
    return loss, output.logps, output.entropy, output.kl, output.clipped, scale


@torch.library.custom_op("zoomzero::grpo_loss", mutates_args=())
def _grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: Sequence[float],
    needs_grad: bool,
) -> _Outputs:
    tensors = PolicyTensors(token_ids, mask, advantages, weights, old_logps, ref_logps)
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if needs_grad else None
    outputs = _run(logits, tensors, PolicyOptions(*options), grad)
    return (*outputs, logits.new_empty(0) if grad is None else grad)


@_grpo_loss.register_fake
def _grpo_loss_fake(logits: Tensor, token_ids: Tensor, *rest: Any) -> _Outputs:
    grad = logits.new_empty(logits.shape if rest[-1] else (0,))
    return (*_grpo_loss_inplace_fake(logits, token_ids), grad)


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


_grpo_loss.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("zoomzero::grpo_loss_", mutates_args={"logits"})
def _grpo_loss_inplace(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: Sequence[float],
) -> _InplaceOutputs:
    tensors = PolicyTensors(token_ids, mask, advantages, weights, old_logps, ref_logps)
    return _run(logits, tensors, PolicyOptions(*options), logits)


@_grpo_loss_inplace.register_fake
def _grpo_loss_inplace_fake(logits: Tensor, token_ids: Tensor, *_: Any) -> _InplaceOutputs:
    dtype = compute_dtype(logits)
    logps, entropy, kl, clipped = (logits.new_empty(token_ids.shape, dtype=dtype) for _ in range(4))
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
def grpo_loss(
    logits: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    temperature: float = 1.0,
    beta: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    kl_clamp: float | None = 10.0,
    unbiased_kl: bool = False,
    delta: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    num_items: Tensor | float | None = None,
    importance_sampling_level: str = "token",
    token_weights: Tensor | None = None,
    inplace: bool = False,
) -> GRPOLossOutput:
    """Clipped GRPO policy loss with per-token advantages, fused over the vocabulary.

    Args:
        logits: [B, T, V] float32, bfloat16, float16 or float64; ``logits[:, t]`` predicts ``token_ids[:, t]``.
        token_ids: [B, T] int64 or int32; masked tokens may hold any value.
        advantages: [B, T], or [B] for one a sequence, floating point.
        mask: [B, T] bool or integer 0/1. Masked tokens cost no work and may hold NaN or inf in any tensor.
        old_logps: [B, T] log-probabilities of the sampling policy at the same temperature; None means on-policy.
        ref_logps: [B, T] of the reference model; needed when ``beta > 0``, reported as ``kl`` in any case.
        temperature: the logits are divided by it.
        beta: weight of the k3 estimate of the KL divergence to the reference.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; for "cispo" clip_high is itself the
            bound of the ratio, as TRL's ``epsilon_high``.
        kl_clamp: largest value of the k3 estimate, None for no limit (as TRL).
        unbiased_kl: multiply the KL estimate by the importance ratio, gradient included, which makes it unbiased where
            the policy has left the one that sampled (DeepSeek-V3.2; TRL's ``use_bias_correction_kl``).
        delta: the ratio is at most this before it is compared with the clipped one, which bounds the loss of negative
            advantages (two-sided clipping, INTELLECT-2; TRL's ``delta``); None for no bound.
        sapo_temperature_pos, sapo_temperature_neg: steepness of the gate of "sapo" for advantages above 0, and others.
        loss_type: as in TRL. "grpo", "bnpo", "dr_grpo", "dapo" and "luspo" differ in their normaliser. "cispo" weighs
            the log-probability by the bounded ratio, a detached factor, and "sapo" puts a soft gate in the place of the
            clip; they have the normalisers of "dapo" and "grpo".
        max_completion_length: length in the normaliser of "dr_grpo", the width T if None.
        num_items: tokens in the normaliser of "dapo" and "cispo" (over all processes and accumulation steps), the valid
            tokens of this batch if None; the other loss types do not use it.
        importance_sampling_level: "token", or "sequence" for the mean log-ratio of each sequence (GSPO).
        token_weights: [B, T] factors of the policy terms, not of the KL term, that get no gradient: importance-sampling
            ratios, masks or other weights, finite and >= 0. A token of weight 0 counts in the normaliser, but not as
            clipped.
        inplace: the gradient takes the memory of the logits, which must not be read after this call.

    Returns:
        GRPOLossOutput. Maths and results are float32, or float64 for float64 logits. Log-probabilities are at most 0,
        however large the logits. NaN or inf among the logits of a valid token shows in its ``logps`` and, unless its
        advantage is 0 and ``beta`` too, in the loss and in its gradient: a token of advantage 0 has no policy term,
        whatever its logits and its ratio, and a token without a slope has a gradient of exactly 0.

    Raises:
        ValueError: shapes, devices or options do not fit; ``inplace`` with logits that share memory; on CPU (elsewhere
            with ZOOMZERO_CHECK_VALUES=1, which waits for the GPU) also token ids out of range; unchecked they give NaN.
        TypeError: wrong dtype.
        RuntimeError: a second derivative is asked of it.

    Source: the objective of GRPO (arXiv 2402.03300) with the asymmetric clipping of DAPO (arXiv 2503.14476).
    """
    options = PolicyOptions(
        temperature,
        beta,
        clip_low,
        clip_high,
        limit(kl_clamp),
        float(unbiased_kl),
        limit(delta),
        OBJECTIVES.get(loss_type, 0.0),
        sapo_temperature_pos,
        sapo_temperature_neg,
    )
    check_options(_OP, options)
    check_level(_OP, importance_sampling_level)
    _check_logits(logits)
    normaliser = Normaliser(loss_type, max_completion_length, num_items)
    tensors = policy_tensors(_OP, logits, token_ids, advantages, mask, old_logps, ref_logps, normaliser)
    check_reference(_OP, tensors, options)
    tensors = with_token_weights(_OP, tensors, token_weights)
    if importance_sampling_level == "sequence":
        logps, entropy = masked_logps(_OP, logits, token_ids, mask, temperature)
        return sequence_level_loss(_OP, logps, entropy, tensors, options)
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    data = logits.detach()
    if inplace and needs_grad:
        _check_inplace(logits)
        loss, logps, entropy, kl, clipped, scale = _grpo_loss_inplace(data, *tensors, options)
        grad = data
    else:
        loss, logps, entropy, kl, clipped, scale, grad = _grpo_loss(data, *tensors, options, needs_grad)
    if needs_grad:
        loss = with_stored_gradient(_OP, loss, scale, (logits,), (grad,))
    return loss_output(loss, logps, entropy, kl, clipped, mask)
