"""Policy loss of GRPO straight from hidden states and the language-model head, never holding all logits.

Valid rows are gathered; for each chunk of rows one matmul gives the logits, the row pass turns them into their gradient
in place, and two matmuls take that to the hidden states and the weight. See Note [Chunk size].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.checks import checked_mask_and_ids
from zoomzero_kernels.linear_selective_logps import masked_linear_logps
from zoomzero_kernels.policy import head, rows
from zoomzero_kernels.policy.options import (
    GRPOLossOutput,
    PolicyOptions,
    RowOutputs,
    check_choices,
    check_policy_tensors,
    compute_dtype,
    policy_options,
)
from zoomzero_kernels.policy.sequence_level import sequence_level_loss
from zoomzero_kernels.policy.stored_gradient import stored_scale, with_stored_gradient
from zoomzero_kernels.policy.weights import check_normaliser, masked_mean, token_weights

_OP = "linear_grpo_loss"
# Loss, logps, entropy, kl, clipped, gradients of hidden, weight and bias (empty where not wanted), and their scale.
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _picked(tensor: Tensor | None, valid: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[valid].unsqueeze(0)


@torch.library.custom_op("zoomzero::linear_grpo_loss", mutates_args=())
def _linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    temperature: float,
    beta: float,
    clip_low: float,
    clip_high: float,
    kl_clamp: float,
    unbiased_kl: bool,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> _Outputs:
    options = PolicyOptions(temperature, beta, clip_low, clip_high, kl_clamp, unbiased_kl)
    needs = head.HeadNeeds(needs_hidden, needs_weight, needs_bias)
    valid, ids = checked_mask_and_ids(_OP, token_ids, mask, weight.shape[0])
    states, ids = head.valid_rows(hidden, valid), ids[valid].unsqueeze(0)
    scale = stored_scale(hidden, weights)
    credit, share = advantages[valid].unsqueeze(0), (weights[valid] / scale).unsqueeze(0)
    old, ref = _picked(old_logps, valid), _picked(ref_logps, valid)
    gradients = head.HeadGradients(states, weight, needs)
    parts: list[RowOutputs] = []
    for start, chunk, logits in head.chunk_logits(states, weight, bias):
        window = slice(start, start + chunk.shape[0])
        everything = torch.ones((1, chunk.shape[0]), dtype=torch.bool, device=hidden.device)
        grad = logits.unsqueeze(0) if any(needs) else None
        parts.append(
            rows.policy_rows(
                logits.unsqueeze(0),
                ids[:, window],
                everything,
                credit[:, window],
                share[:, window],
                None if old is None else old[:, window],
                None if ref is None else ref[:, window],
                options,
                grad,
            )
        )
        if grad is not None:
            gradients.add(start, chunk, logits)
    dtype = compute_dtype(hidden)
    tokens = [torch.zeros(mask.shape, dtype=dtype, device=hidden.device) for _ in range(5)]
    for index, output in enumerate(tokens):
        if parts:
            output[valid] = torch.cat([part[index] for part in parts], dim=1).squeeze(0)
    loss = (tokens[0] * weights).sum()
    return (loss, *tokens[1:], *gradients.results(hidden, valid), scale)  # type: ignore[return-value]


@_linear_grpo_loss.register_fake
def _linear_grpo_loss_fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    temperature: float,
    beta: float,
    clip_low: float,
    clip_high: float,
    kl_clamp: float,
    unbiased_kl: bool,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> _Outputs:
    dtype = compute_dtype(hidden)
    token = [hidden.new_empty(mask.shape, dtype=dtype) for _ in range(4)]
    wanted = ((needs_hidden, hidden.shape), (needs_weight, weight.shape), (needs_bias, weight.shape[:1]))
    gradients = [weight.new_empty(shape if needed else (0,)) for needed, shape in wanted]
    return (hidden.new_empty((), dtype=dtype), *token, *gradients, hidden.new_empty((), dtype=torch.float32))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.num_inputs = len(inputs)
    ctx.needs = inputs[-3:]
    ctx.save_for_backward(*output[5:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    others = (None,) * (ctx.num_inputs - 3)
    if grad_loss is None:
        return (None, None, None, *others)
    *grads, scale = ctx.saved_tensors
    wanted = zip(grads, ctx.needs, strict=True)
    return (*(grad * (grad_loss * scale).to(grad.dtype) if needed else None for grad, needed in wanted), *others)


_linear_grpo_loss.register_autograd(_backward, setup_context=_setup_context)


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
    loss_type: str = "dapo",
    max_completion_length: int | None = None,
    num_items: Tensor | float | None = None,
    importance_sampling_level: str = "token",
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
    """
    options = policy_options(_OP, temperature, beta, clip_low, clip_high, kl_clamp, unbiased_kl)
    check_choices(_OP, loss_type, importance_sampling_level)
    check_normaliser(_OP, max_completion_length, num_items)
    head.check_head(_OP, hidden, weight, bias)
    check_policy_tensors(_OP, hidden, token_ids, advantages, mask, old_logps, ref_logps, beta)
    weights = token_weights(mask, loss_type, max_completion_length, num_items, compute_dtype(hidden))
    per_token = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape)).detach()
    old = None if old_logps is None else old_logps.detach()
    ref = None if ref_logps is None else ref_logps.detach()
    if importance_sampling_level == "sequence":
        logps, entropy = masked_linear_logps(_OP, hidden, weight, bias, token_ids, mask, temperature)
        return sequence_level_loss(logps, entropy, per_token, mask, weights, old, ref, options)
    enabled = torch.is_grad_enabled()
    needs = [enabled and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    chosen = dataclasses.astuple(options)
    inputs = (hidden, weight, bias)
    detached = [None if x is None else x.detach() for x in inputs]
    loss, logps, entropy, kl, clipped, *grads, scale = _linear_grpo_loss(
        *detached, token_ids, per_token, mask, weights, old, ref, *chosen, *needs
    )
    if any(needs):
        loss = with_stored_gradient(loss, scale, inputs, tuple(grads))
    return GRPOLossOutput(loss, logps, entropy, masked_mean(kl, mask), masked_mean(clipped, mask))
