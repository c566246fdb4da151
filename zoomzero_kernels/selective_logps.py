"""Log-probabilities of given tokens from logits, without a log-softmax tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.host import registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import check_mask, check_token_ids, checked_mask_and_ids, describe
from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.options import check_temperature
from zoomzero_kernels.policy.tensors import LOGITS_DTYPES, LogpOutputs, LogpSlopes, LogpStatistics

_OP = "selective_logps"


@registration.op("selective_logps", differentiable=True)
def _selective_logps(
    logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    valid, ids = checked_mask_and_ids(_OP, token_ids, mask, logits.shape[-1])
    return rows.logp_rows(logits, ids, valid, temperature)


@torch.library.register_fake("zoomzero::selective_logps")
def _selective_logps_fake(logits: Tensor, token_ids: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return LogpOutputs.zeros(token_ids.shape, logits)


@torch.library.custom_op("zoomzero::selective_logps_backward", mutates_args=())
def _selective_logps_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    temperature: float,
) -> Tensor:
    valid, ids = checked_mask_and_ids(_OP, token_ids, mask, logits.shape[-1])
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    saved, slopes = LogpStatistics(entropy, normaliser), LogpSlopes(grad_logps, grad_entropy)
    rows.logp_rows_backward(logits, ids, valid, saved, slopes, temperature, grad)
    return grad


@_selective_logps_backward.register_fake
def _selective_logps_backward_fake(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, token_ids, mask, ctx.temperature = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, token_ids, mask, output[1], output[2])


def _backward(
    ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, None, None, None]:
    logits, token_ids, mask, entropy, normaliser = ctx.saved_tensors
    if grad_logps is None and grad_entropy is None:
        return None, None, None, None
    slope = torch.zeros_like(entropy) if grad_logps is None else grad_logps
    grad = _selective_logps_backward(logits, token_ids, mask, entropy, normaliser, slope, grad_entropy, ctx.temperature)
    return grad, None, None, None


torch.library.register_autograd("zoomzero::selective_logps", _backward, setup_context=_setup_context)


def masked_logps(op: str, logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Differentiable log-probabilities and entropy [B, T], 0 on masked tokens, whose rows are not read."""
    check_mask(op, mask, (logits.shape[0], logits.shape[1]), logits)
    logps, entropy, _ = _selective_logps(logits, token_ids, mask, float(temperature))
    return logps, entropy


@takes_arrays
def selective_logps(
    logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Per-token log-probabilities ``log_softmax(logits / temperature)[token]``, and the entropy of each distribution.

    Args:
        logits: [B, T, V] float32, bfloat16, float16 or float64; ``logits[:, t]`` predicts ``token_ids[:, t]``.
        token_ids: [B, T] int64 or int32, in [0, V).
        temperature: the logits are divided by it.
        with_entropy: return ``(logps, entropy)``.

    Returns:
        [B, T] float32 (float64 for float64 logits), differentiable in the logits, as is the entropy.

    Raises:
        ValueError: shapes, devices or temperature do not fit; on CPU (elsewhere with
            ZOOMZERO_CHECK_VALUES=1, which waits for the GPU) also token ids out of range; unchecked they give NaN.
        TypeError: wrong dtype.
    """
    check_temperature(_OP, temperature)
    if logits.dim() != 3 or logits.dtype not in LOGITS_DTYPES or logits.shape[-1] == 0:
        raise ValueError(
            f"{_OP}: logits must be floating point [B, T, V >= 1], got {describe(logits)}; do not flatten them"
        )
    check_token_ids(_OP, token_ids, (logits.shape[0], logits.shape[1]), logits)
    everything = torch.ones(token_ids.shape, dtype=torch.bool, device=logits.device)
    logps, entropy = masked_logps(_OP, logits, token_ids, everything, temperature)
    return (logps, entropy) if with_entropy else logps
