"""Log-probabilities of given tokens from hidden states and the language-model head, never holding all logits.

The forward pass keeps no logits; the backward pass computes them again, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.host import registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import check_mask, check_token_ids, checked_mask_and_ids
from zoomzero_kernels.policy import head, rows
from zoomzero_kernels.policy.options import check_temperature
from zoomzero_kernels.policy.tensors import LogpOutputs, LogpSlopes, LogpStatistics

_OP = "linear_selective_logps"


def _all_true(like: Tensor) -> Tensor:
    return torch.ones((1, like.shape[0]), dtype=torch.bool, device=like.device)


@registration.op("linear_selective_logps", differentiable=True)
def _linear_selective_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    softcap: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    valid, ids = checked_mask_and_ids(_OP, token_ids, mask, weight.shape[0])
    places = head.ValidRows.of(valid)
    states, ids = places.take(hidden), places.take(ids).unsqueeze(0)
    parts = [
        rows.logp_rows(chunk.logits.unsqueeze(0), ids[:, chunk.window], _all_true(chunk.rows), temperature)
        for chunk in head.chunks(states, weight, bias, states.shape[0], head.SoftCap(*softcap))
    ]
    logps, entropy, normaliser = head.gathered(parts, places, LogpOutputs.zeros(mask.shape, hidden))
    return logps, entropy, normaliser


@torch.library.register_fake("zoomzero::linear_selective_logps")
def _linear_selective_logps_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return LogpOutputs.zeros(token_ids.shape, hidden)


@torch.library.custom_op("zoomzero::linear_selective_logps_backward", mutates_args=())
def _linear_selective_logps_backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    temperature: float,
    softcap: Sequence[float],
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    valid, ids = checked_mask_and_ids(_OP, token_ids, mask, weight.shape[0])
    slopes = (grad_logps,) if grad_entropy is None else (grad_logps, grad_entropy)
    places = head.ValidRows.of(valid, torch.stack(slopes).ne(0).any(0))
    states = places.take(hidden)
    ids, entropy, normaliser, grad_logps = (places.take(x).unsqueeze(0) for x in (ids, entropy, normaliser, grad_logps))
    grad_entropy = None if grad_entropy is None else places.take(grad_entropy).unsqueeze(0)
    gradients = head.HeadGradients(states, weight, head.HeadNeeds(*needs))
    learning = states[: places.num_learning]
    for chunk in head.chunks(learning, weight, bias, places.num_learning, head.SoftCap(*softcap)):
        window = (slice(None), chunk.window)
        saved = LogpStatistics(entropy[window], normaliser[window])
        slope = LogpSlopes(grad_logps[window], None if grad_entropy is None else grad_entropy[window])
        grad = chunk.logits.unsqueeze(0)
        rows.logp_rows_backward(grad, ids[window], _all_true(chunk.rows), saved, slope, temperature, grad)
        gradients.add(chunk)
    return gradients.results(hidden, places)


@_linear_selective_logps_backward.register_fake
def _linear_selective_logps_backward_fake(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return head.empty_gradients(hidden, weight, head.HeadNeeds(*rest[-1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.temperature, ctx.softcap = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1], output[2])


def _backward(
    ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, token_ids, mask, entropy, normaliser = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    if grad_logps is None and grad_entropy is None:
        return (None,) * 7
    slope = torch.zeros_like(entropy) if grad_logps is None else grad_logps
    grads = _linear_selective_logps_backward(
        hidden, weight, bias, token_ids, mask, entropy, normaliser, slope, grad_entropy, ctx.temperature, ctx.softcap,
        needs,
    )  # fmt: skip
    return (*(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), *(None,) * 4)


torch.library.register_autograd("zoomzero::linear_selective_logps", _backward, setup_context=_setup_context)


def masked_linear_logps(
    op: str,
    inputs: head.HeadInputs,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    softcap: head.SoftCap,
) -> tuple[Tensor, Tensor]:
    """Differentiable log-probabilities and entropy [B, T], 0 on masked tokens, whose rows are not read."""
    check_mask(op, mask, (inputs.hidden.shape[0], inputs.hidden.shape[1]), inputs.hidden)
    logps, entropy, _ = _linear_selective_logps(*inputs, token_ids, mask, float(temperature), softcap)
    return logps, entropy


@takes_arrays
def linear_selective_logps(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Per-token log-probabilities of ``hidden @ weight.T + bias``, for old and reference passes and for training.

    Args:
        hidden: [B, T, D] float32, bfloat16, float16 or float64; ``hidden[:, t]`` predicts ``token_ids[:, t]``.
        weight: [V, D] of the language-model head, in the dtype of ``hidden``. Under ``torch.autocast`` both are cast.
        token_ids: [B, T] int64 or int32, in [0, V).
        bias: [V] or None.
        temperature: the logits are divided by it.
        with_entropy: return ``(logps, entropy)``.

    Returns:
        [B, T] float32 (float64 for float64), differentiable in hidden, weight and bias, as is the entropy.

    Raises:
        ValueError: shapes, devices or temperature do not fit; on CPU (elsewhere with
            ZOOMZERO_CHECK_VALUES=1, which waits for the GPU) also token ids out of range; unchecked they give NaN.
        TypeError: wrong dtype.
    """
    check_temperature(_OP, temperature)
    inputs = head.under_autocast(hidden, weight, bias)
    head.check_head(_OP, *inputs)
    check_token_ids(_OP, token_ids, (hidden.shape[0], hidden.shape[1]), hidden)
    everything = torch.ones(token_ids.shape, dtype=torch.bool, device=hidden.device)
    logps, entropy = masked_linear_logps(_OP, inputs, token_ids, everything, temperature, head.SoftCap())
    return (logps, entropy) if with_entropy else logps
