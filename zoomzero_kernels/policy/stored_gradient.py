"""Ties a loss to gradients that its forward pass has already computed, and scales them by the gradient of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def stored_scale(logits: Tensor, weights: Tensor) -> Tensor:
    """Factor kept out of the stored gradient.

    A float16 gradient of the normalised loss would underflow before a loss scaler multiplies it, so it is stored for
    weights of at most 1 and scaled in the backward pass. Wider exponents need no such factor.
    """
    one = torch.ones((), dtype=torch.float32, device=logits.device)
    if logits.dtype != torch.float16 or weights.numel() == 0:
        return one
    largest = weights.amax()
    return torch.where(largest > 0, largest, one)


def _graph_is_kept() -> bool:
    """Whether the running backward keeps its graph (retain_graph=True), so that the stored gradient is needed again."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """``grad * scale`` for a 0-d ``scale``, without a second buffer where none is needed.

    On a plain CPU tensor a scale of exactly 1 returns ``grad`` itself. Otherwise the product overwrites ``grad`` when
    autograd will not run this graph again, and allocates when it will.
    """
    # Tracers see tensors without values (subclasses of Tensor outside of dynamo), and plan the memory themselves.
    if torch.compiler.is_compiling() or type(grad) is not torch.Tensor or type(scale) is not torch.Tensor:
        return grad * scale.to(grad.dtype)
    if scale.device.type == "cpu" and float(scale) == 1.0:
        return grad
    return grad * scale if _graph_is_kept() else grad.mul_(scale)


class _StoredGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: Tensor, num_inputs: int, *tensors: Tensor | None) -> Tensor:
        ctx.num_inputs = num_inputs
        ctx.save_for_backward(scale, *tensors[num_inputs:])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scale, *grads = ctx.saved_tensors
        upstream = grad_loss * scale
        wanted = zip(grads, ctx.needs_input_grad[3 : 3 + ctx.num_inputs], strict=True)
        scaled = (_scaled(grad, upstream) if needed else None for grad, needed in wanted)
        return (None, None, None, *scaled, *(None for _ in grads))


def with_stored_gradient(
    loss: Tensor, scale: Tensor, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]
) -> Tensor:
    """``loss`` (0-d, detached) whose gradient in ``inputs[i]`` is ``scale * grads[i]``.

    The caller gives up ``grads``: a backward pass may overwrite them, or hand them out as the gradients.
    """
    return _StoredGradient.apply(loss, scale, len(inputs), *inputs, *grads)
