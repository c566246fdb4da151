"""The pass over rows of logits that all policy losses share, and the choice of the back end that runs it.

A row is the logits of one token. Only valid rows are read, and the gradient may be written over the logits.

Note [Scaled alike]: every back end takes the largest logit from the logits before it divides by the temperature. So no
difference is above 0 whatever its rounding, no log-probability is above 0, and a vocabulary of one has no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.host import native
from zoomzero_kernels.policy import rows_eager
from zoomzero_kernels.policy.objectives import PolicyOptions
from zoomzero_kernels.policy.tensors import LogpOutputs, LogpSlopes, LogpStatistics, PolicyTensors, RowOutputs
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


def _address(logits: Tensor, values: Tensor | None, per_token: int = 1) -> int:
    """Where float32 values of each token of [B, T] lie, for native code."""
    count = logits.shape[0] * logits.shape[1] * per_token
    return native.address(values, torch.float32, count, logits.device)


def _native_rows(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> _C.LogitRows:
    count = logits.shape[0] * logits.shape[1]
    return _C.LogitRows(
        logits.data_ptr(),
        native.element_type(logits),
        logits.shape,
        logits.stride()[:2],
        native.address(token_ids, torch.int64, count, logits.device),
        native.address(mask, torch.bool, count, logits.device),
        policy_rows_launch.inverse_temperature(temperature),
    )


def _native_gradient(grad: Tensor | None) -> _C.GradientRows:
    if grad is None:
        return _C.GradientRows(0, (0, 0))
    return _C.GradientRows(grad.data_ptr(), grad.stride()[:2])


def policy_rows(logits: Tensor, tensors: PolicyTensors, options: PolicyOptions, grad: Tensor | None) -> RowOutputs:
    """Token losses and, if ``grad`` is given, the gradient of their weighted sum in the logits.

    logits [B, T, V] any strides; token_ids int64, mask bool; grad [B, T, V], which may be ``logits`` itself, is
    overwritten: 0 on masked rows, and on those whose slope is 0, whatever their logits hold.
    """
    chosen = back_end(logits)
    if chosen == "eager":
        return rows_eager.policy_rows(logits, tensors, options, grad)
    outputs = RowOutputs.zeros(tensors.mask.shape, logits)
    target = None if grad is None else _unit_stride(grad)
    source = _unit_stride(logits)
    ids, mask = tensors.token_ids.contiguous(), tensors.mask.contiguous()
    ready = PolicyTensors(ids, mask, _values(tensors.advantages), *map(_maybe_values, tensors[3:]))  # type: ignore[arg-type]
    if chosen == "native":
        _C.policy_rows(
            _native_rows(source, ready.token_ids, ready.mask, options.temperature),
            [_address(logits, values) for values in ready[2:]],
            options,
            [_address(logits, values) for values in outputs],
            _native_gradient(target),
            torch.get_num_threads(),
        )
    else:
        launch.run(policy_rows_launch.policy_rows_launch(source, ready, options, outputs, target))
    if grad is not None and target is not None and target is not grad:
        grad.copy_(target)
    return outputs


def logp_rows(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> LogpOutputs:
    """Log-probability, entropy and normaliser of each token, 0 where the mask is False."""
    chosen = back_end(logits)
    if chosen == "eager":
        return rows_eager.logp_rows(logits, token_ids, mask, temperature)
    outputs = LogpOutputs.zeros(mask.shape, logits)
    inputs = (_unit_stride(logits), token_ids.contiguous(), mask.contiguous(), temperature)
    if chosen == "native":
        _C.logp_rows(
            _native_rows(*inputs),
            _address(logits, outputs.logps),
            _address(logits, outputs.entropy),
            _address(logits, outputs.normaliser, 2),
            torch.get_num_threads(),
        )
    else:
        launch.run(policy_rows_launch.logp_rows_launch(*inputs, outputs))
    return outputs


def logp_rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    saved: LogpStatistics,
    slopes: LogpSlopes,
    temperature: float,
    grad: Tensor,
) -> None:
    """Write the gradient of ``logp_rows`` into ``grad`` [B, T, V], which may be ``logits`` itself.

    With z = logits / temperature, d logp / d z_i = [i == token] - p_i and d entropy / d z_i = -p_i (log p_i + entropy).
    """
    chosen = back_end(logits)
    if chosen == "eager":
        rows_eager.logp_rows_backward(logits, token_ids, mask, saved, slopes, temperature, grad)
        return
    inputs = (_unit_stride(logits), token_ids.contiguous(), mask.contiguous(), temperature)
    ready = LogpStatistics(*map(_values, saved))
    wanted = LogpSlopes(_values(slopes.logps), _maybe_values(slopes.entropy))
    if chosen == "native":
        _C.logp_rows_backward(
            _native_rows(*inputs),
            (_address(logits, ready.entropy), _address(logits, ready.normaliser, 2)),
            (_address(logits, wanted.logps), _address(logits, wanted.entropy)),
            _native_gradient(grad),
            torch.get_num_threads(),
        )
    else:
        launch.run(policy_rows_launch.logp_rows_backward_launch(*inputs, ready, wanted, grad))


def scale_in_place(grad: Tensor, scale: Tensor) -> None:
    """``grad *= scale`` for a 0-d ``scale`` on the same device, without a pass over memory where it is 1.

    grad: [..., V], any strides. On CUDA the kernel looks at the scale, so that nobody waits for the device.
    """
    if scale.device.type == "cpu":
        if float(scale) != 1.0:
            grad.mul_(scale)
        return
    rows = grad.unsqueeze(0) if grad.dim() == 2 else grad if grad.dim() == 3 else grad.view(1, 1, -1)
    if back_end(grad) == "triton" and rows.stride(-1) == 1 and scale.dtype == torch.float32:
        launch.run(policy_rows_launch.scale_rows_launch(rows, scale))
    else:
        grad.mul_(scale)
