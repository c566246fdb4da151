"""Policy loss of GRPO straight from hidden states and the language-model head, never holding all logits.

Valid rows are gathered; for each chunk of rows one matmul gives the logits, the row pass turns them into their gradient
in place, and two matmuls take that to the hidden states and the weight. See Note [Chunk size].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.arrays import takes_arrays
from zoomzero_kernels.checks import checked_mask_and_ids
from zoomzero_kernels.linear_selective_logps import masked_linear_logps
from zoomzero_kernels.policy import head, rows
from zoomzero_kernels.policy.options import (
    OBJECTIVES,
    GRPOLossOutput,
    PolicyOptions,
    PolicyTensors,
    RowOutputs,
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

_OP = "linear_grpo_loss"
# Loss, logps, entropy, kl, clipped, scale that the gradients still need, gradients of hidden, weight and bias (empty
# where not wanted).
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("zoomzero::linear_grpo_loss", mutates_args=())
def _linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: Sequence[float],
    needs: Sequence[bool],
) -> _Outputs:
    valid, ids = checked_mask_and_ids(_OP, token_ids, mask, weight.shape[0])
    scale = stored_scale(hidden, weights)
    tokens = PolicyTensors(ids, valid, advantages, weights / scale, old_logps, ref_logps).at(valid)
    states = head.valid_rows(hidden, valid)
    gradients = head.HeadGradients(states, weight, head.HeadNeeds(*needs))
    parts: list[RowOutputs] = []
    for start, chunk, logits in head.chunk_logits(states, weight, bias):
        grad = logits.unsqueeze(0) if any(needs) else None
        # As one sequence.
        here = tokens.at((None, slice(start, start + chunk.shape[0])))
        parts.append(rows.policy_rows(logits.unsqueeze(0), here, PolicyOptions(*options), grad))
        if grad is not None:
            gradients.add(start, chunk, logits)
    outputs = RowOutputs.zeros(mask.shape, hidden)
    head.scatter(parts, valid, outputs)
    loss = (outputs.loss * weights).sum()
    return (
        loss, outputs.logps, outputs.entropy, outputs.kl, outputs.clipped, scale, *gradients.results(hidden, valid),
    )  # fmt: skip


@_linear_grpo_loss.register_fake
def _linear_grpo_loss_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, *rest: Any
) -> _Outputs:
    dtype = compute_dtype(hidden)
    logps, entropy, kl, clipped = (hidden.new_empty(token_ids.shape, dtype=dtype) for _ in range(4))
    gradients = head.empty_gradients(hidden, weight, head.HeadNeeds(*rest[-1]))
    scale = hidden.new_empty((), dtype=torch.float32)
    return hidden.new_empty((), dtype=dtype), logps, entropy, kl, clipped, scale, *gradients


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


_linear_grpo_loss.register_autograd(_backward, setup_context=_setup_context)


@takes_arrays
def linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
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
) -> GRPOLossOutput:
    """The loss of :func:`grpo_loss` from hidden states and the head, with gradients for hidden, weight and bias.

    Args:
        hidden: [B, T, D]; ``hidden[:, t]`` predicts ``token_ids[:, t]``. Rows of masked tokens are not read.
        weight: [V, D] of the language-model head, in the dtype of ``hidden``.
        bias: [V] or None.
        token_ids, advantages, mask and the options: as in :func:`grpo_loss`.

    Returns:
        GRPOLossOutput. Logits exist for a chunk of tokens at a time, in the dtype of ``hidden``; the maths is float32
        (float64 for float64), and a 16-bit weight's gradient is accumulated in float32.

    Raises:
        ValueError: shapes, devices, dtypes or options do not fit; on CPU (elsewhere with
            ZOOMZERO_CHECK_VALUES=1, which waits for the GPU) also token ids out of range; unchecked they give NaN.
        TypeError: wrong dtype.
        RuntimeError: a second derivative is asked of it.
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
    head.check_head(_OP, hidden, weight, bias)
    normaliser = Normaliser(loss_type, max_completion_length, num_items)
    tensors = policy_tensors(_OP, hidden, token_ids, advantages, mask, old_logps, ref_logps, normaliser)
    check_reference(_OP, tensors, options)
    tensors = with_token_weights(_OP, tensors, token_weights)
    if importance_sampling_level == "sequence":
        logps, entropy = masked_linear_logps(_OP, hidden, weight, bias, token_ids, mask, temperature)
        return sequence_level_loss(_OP, logps, entropy, tensors, options)
    inputs = (hidden, weight, bias)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    detached = [None if x is None else x.detach() for x in inputs]
    loss, logps, entropy, kl, clipped, scale, *grads = _linear_grpo_loss(*detached, *tensors, options, needs)
    if any(needs):
        loss = with_stored_gradient(_OP, loss, scale, inputs, tuple(grads))
    return loss_output(loss, logps, entropy, kl, clipped, mask)
