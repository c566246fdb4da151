"""Policy loss of GRPO straight from hidden states and the language-model head, never holding all logits.

Valid rows are gathered; for each chunk of rows one matmul gives the logits, the row pass turns them into their gradient
in place, and two matmuls take that to the hidden states and the weight. See Note [Chunk size].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from zoomzero_kernels.host import registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import checked_mask_and_ids
from zoomzero_kernels.linear_selective_logps import masked_linear_logps
from zoomzero_kernels.policy import head, rows
from zoomzero_kernels.policy.objectives import SQUARE, PolicyOptions, reads_twice, row_options
from zoomzero_kernels.policy.options import LossOptions, checked_options, takes_options
from zoomzero_kernels.policy.stored_gradient import scaled_once, stored_scale, with_stored_gradient
from zoomzero_kernels.policy.tensors import (
    GRPOLossOutput,
    PolicyTensors,
    RowOutputs,
    compute_dtype,
    loss_output,
    policy_tensors,
)
from zoomzero_kernels.policy.two_passes import two_pass_loss

_OP = "linear_grpo_loss"
# Loss, logps, entropy, kl, clipped, scale that the gradients still need, gradients of hidden, weight and bias (empty
# where not wanted).
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _learning(tokens: PolicyTensors, options: PolicyOptions) -> Tensor | None:
    """Tokens [B, T] that may have a gradient, None where nothing is known: see Note [Silent rows] in head.py."""
    with_kl = tokens.ref_logps is not None and options.beta > 0
    if with_kl or tokens.entropy_weights is not None or options.objective == SQUARE:
        return None
    return tokens.advantages != 0 if tokens.factors is None else (tokens.advantages != 0) & (tokens.factors != 0)


def _run(
    inputs: head.HeadInputs,
    tokens: PolicyTensors,
    numbers: PolicyOptions,
    softcap: head.SoftCap,
    needs: head.HeadNeeds,
    grad_weight: Tensor | None = None,
) -> _Outputs:
    hidden, weight, bias = inputs
    valid, ids = checked_mask_and_ids(_OP, tokens.token_ids, tokens.mask, weight.shape[0])
    scale = stored_scale(hidden, tokens)
    places = head.ValidRows.of(valid, _learning(tokens, numbers) if any(needs) else None)
    # As one sequence.
    scaled = tokens.divided_by(scale)._replace(token_ids=ids, mask=valid)
    packed = PolicyTensors(*(None if x is None else places.take(x) for x in scaled))  # type: ignore[arg-type]
    states = places.take(hidden)
    # Sums that still need a factor, or more digits, have memory of their own.
    takes_sums = grad_weight is not None and grad_weight.dtype == head.sum_dtype(weight) and weight.dtype != torch.half
    gradients = head.HeadGradients(states, weight, needs, grad_weight if takes_sums else None)
    parts: list[RowOutputs] = []
    for chunk in head.chunks(states, weight, bias, places.num_learning, softcap):
        logits = chunk.logits.unsqueeze(0)
        grad = logits if any(needs) and not chunk.silent else None
        parts.append(rows.policy_rows(logits, packed.at((None, chunk.window)), numbers, grad))
        if grad is not None:
            gradients.add(chunk)
    results = RowOutputs(*head.gathered(parts, places, RowOutputs.zeros(valid.shape, hidden)))
    loss = tokens.total(results.loss, results.entropy)
    if grad_weight is not None:
        gradients.add_weight_to(grad_weight, scale)
    return (
        loss, results.logps, results.entropy, results.kl, results.clipped, scale, *gradients.results(hidden, places),
    )  # fmt: skip


@registration.op("linear_grpo_loss", differentiable=True)
def _linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: Sequence[Tensor | None],
    options: Sequence[float],
    softcap: Sequence[float],
    needs: Sequence[bool],
) -> _Outputs:
    """tensors: PolicyTensors; options: PolicyOptions; softcap: head.SoftCap; needs: head.HeadNeeds."""
    inputs, tokens = head.HeadInputs(hidden, weight, bias), PolicyTensors(*tensors)  # type: ignore[arg-type]
    return _run(inputs, tokens, PolicyOptions(*options), head.SoftCap(*softcap), head.HeadNeeds(*needs))


@torch.library.register_fake("zoomzero::linear_grpo_loss")
def _linear_grpo_loss_fake(hidden: Tensor, weight: Tensor, *rest: Any) -> _Outputs:
    dtype, shape = compute_dtype(hidden), hidden.shape[:2]
    logps, entropy, kl, clipped = (hidden.new_empty(shape, dtype=dtype) for _ in range(4))
    gradients = head.empty_gradients(hidden, weight, head.HeadNeeds(*rest[-1]))
    scale = hidden.new_empty((), dtype=torch.float32)
    return hidden.new_empty((), dtype=dtype), logps, entropy, kl, clipped, scale, *gradients


@torch.library.custom_op("zoomzero::linear_grpo_loss_", mutates_args={"grad_weight"})
def _linear_grpo_loss_adding(
    grad_weight: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: Sequence[Tensor | None],
    options: Sequence[float],
    softcap: Sequence[float],
    needs: Sequence[bool],
) -> _Outputs:
    """The same, with the weight's gradient added to ``grad_weight`` and not among the results."""
    inputs, tokens = head.HeadInputs(hidden, weight, bias), PolicyTensors(*tensors)  # type: ignore[arg-type]
    inner = head.HeadNeeds(*needs)._replace(weight=True)
    return _run(inputs, tokens, PolicyOptions(*options), head.SoftCap(*softcap), inner, grad_weight)


@_linear_grpo_loss_adding.register_fake
def _linear_grpo_loss_adding_fake(grad_weight: Tensor, hidden: Tensor, weight: Tensor, *rest: Any) -> _Outputs:
    return _linear_grpo_loss_fake(hidden, weight, *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    ctx.needs = inputs[-1]
    ctx.save_for_backward(*output[5:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    others = (None,) * (ctx.num_inputs - 3)
    if grad_loss is None:
        return (None, None, None, *others)
    scale, *grads = ctx.saved_tensors
    wanted = zip(grads, ctx.needs, strict=True)
    return (*(scaled_once(_OP, grad, grad_loss * scale) if needed else None for grad, needed in wanted), *others)


torch.library.register_autograd("zoomzero::linear_grpo_loss", _backward, setup_context=_setup_context)


@takes_arrays
@takes_options
def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    grad_weight: Tensor | None = None,
    **options: Unpack[LossOptions],
) -> GRPOLossOutput:
    """The loss of :func:`grpo_loss` from hidden states and the head, with gradients for hidden, weight and bias.

    Args:
        hidden: [B, T, D]; ``hidden[:, t]`` predicts ``token_ids[:, t]``. Rows of masked tokens are not read.
        weight: [V, D] of the language-model head, in the dtype of ``hidden``. Under ``torch.autocast`` both are cast.
        token_ids, advantages, mask: as in :func:`grpo_loss`.
        bias: [V] or None.
        grad_weight: [V, D] float32 (float64 for float64) or of the dtype of ``weight``, e.g. ``weight.grad``. This
            call, not the backward pass, adds the weight's gradient to it, and autograd gives the weight none: no second
            tensor of its size is needed to accumulate over micro-batches. It is the gradient of the loss itself: a
            factor belongs into ``loss_scale``. Without gradients (``torch.no_grad``) unused.
        options: see LossOptions.

    Returns:
        GRPOLossOutput. Logits exist for a chunk of tokens at a time, in the dtype of ``hidden``; the maths is float32
        (float64 for float64), and a 16-bit weight's gradient is accumulated in float32. Tokens of advantage 0 cost one
        matmul instead of three where they have neither a KL term nor an entropy bonus.

    Raises:
        ValueError: shapes, devices, dtypes or options do not fit; on CPU (elsewhere with
            ZOOMZERO_CHECK_VALUES=1, which waits for the GPU) also token ids out of range; unchecked they give NaN.
        TypeError: wrong dtype, or an option that does not exist.
        RuntimeError: a second derivative is asked of it.
    """
    chosen = checked_options(_OP, options)
    head_inputs = head.under_autocast(hidden, weight, bias)
    head.check_head(_OP, *head_inputs)
    if grad_weight is not None:
        head.check_grad_weight(_OP, grad_weight, head_inputs.weight, weight)
    tensors = policy_tensors(_OP, hidden, token_ids, advantages, mask, chosen)
    numbers, cap = row_options(chosen), chosen["logit_softcap"]
    softcap = head.SoftCap() if cap is None else head.SoftCap(chosen["logit_scale"], cap)
    if reads_twice(chosen):
        if grad_weight is not None:
            raise ValueError(
                f"{_OP}: grad_weight needs a loss without terms of whole sequences, got loss_type "
                f"{chosen['loss_type']!r}, importance_sampling_level {chosen['importance_sampling_level']!r} and "
                f"off_policy_threshold {chosen['off_policy_threshold']}; leave grad_weight out"
            )
        logps, entropy = masked_linear_logps(_OP, head_inputs, token_ids, mask, numbers.temperature, softcap)
        return two_pass_loss(_OP, logps, entropy, tensors, chosen)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in head_inputs]
    detached = [None if x is None else x.detach() for x in head_inputs]
    arguments = (*detached, tensors, numbers, softcap)
    if grad_weight is not None and torch.is_grad_enabled():
        needs[1] = False
        loss, logps, entropy, kl, clipped, scale, *grads = _linear_grpo_loss_adding(grad_weight, *arguments, needs)
    else:
        loss, logps, entropy, kl, clipped, scale, *grads = _linear_grpo_loss(*arguments, needs)
    if any(needs):
        # What needs no gradient of autograd's is not tied to the loss.
        inputs = tuple(x if needed else None for x, needed in zip(head_inputs, needs, strict=True))
        loss = with_stored_gradient(_OP, loss, scale, inputs, tuple(grads))
    return loss_output(loss, RowOutputs(loss, logps, entropy, kl, clipped), mask)
