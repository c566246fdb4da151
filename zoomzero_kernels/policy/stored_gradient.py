"""Ties a loss to gradients that its forward pass has already computed, and scales them by the gradient of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.tensors import PolicyTensors


def stored_scale(logits: Tensor, tokens: PolicyTensors) -> Tensor:
    """Factor kept out of the stored gradient.

    A float16 gradient of the normalised loss would underflow before a loss scaler multiplies it, so it is stored for
    weights of at most 1 and scaled in the backward pass. Wider exponents need no such factor.
    """
    one = torch.ones((), dtype=torch.float32, device=logits.device)
    if logits.dtype != torch.float16 or tokens.weights.numel() == 0:
        return one
    shares = (tokens.weights, tokens.entropy_weights)
    largest = torch.stack([share.abs().amax().float() for share in shares if share is not None]).amax()
    return torch.where(largest > 0, largest, one)


def _graph_is_kept() -> bool:
    """Whether the running backward keeps its graph (retain_graph=True), so that the stored gradient is needed again."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """``grad * scale`` for a 0-d ``scale``, without a second buffer where none is needed.

    Note [Handing out]: a stored gradient leaves this module once at most, in the backward pass that gives the graph up.
    Then nobody else holds it: it is multiplied in place, and not even read where the scale is 1. While the graph is
    kept every pass returns a tensor of its own, so what autograd has handed out is never written again.
    """
    # Tracers see tensors without values (subclasses of Tensor outside of dynamo), and plan the memory themselves.
    if torch.compiler.is_compiling() or type(grad) is not torch.Tensor or type(scale) is not torch.Tensor:
        return grad * scale.to(grad.dtype)
    if _graph_is_kept():
        return grad * scale
    rows.scale_in_place(grad, scale)
    return grad


def _second_derivatives(op: str) -> RuntimeError:
    return RuntimeError(
        f"{op}: second derivatives are not implemented, got a backward pass through its gradient; "
        f"differentiate zoomzero_kernels.reference.{op}"
    )


def scaled_once(op: str, grad: Tensor, scale: Tensor) -> Tensor:
    """``grad * scale`` in a backward pass whose graph is not recorded; RuntimeError where it is."""
    if torch.is_grad_enabled():
        raise _second_derivatives(op)
    return grad * scale.to(grad.dtype)


class _Once(torch.autograd.Function):
    """An empty tensor that hangs on the inputs in the graph and holds none of their memory.

    A gradient that is tied to it raises where autograd would go through it to the inputs: their second derivatives
    would lack what the stored gradient does not know.
    """

    @staticmethod
    def forward(ctx: Any, op: str, *inputs: Tensor | None) -> Tensor:
        ctx.op, ctx.num_inputs = op, len(inputs)
        ctx.set_materialize_grads(False)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, ...]:
        if grad is not None:
            raise _second_derivatives(ctx.op)
        return (None,) * (1 + ctx.num_inputs)


class _StoredGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, scale: Tensor, once: Tensor | None, num_inputs: int, *tensors: Tensor | None
    ) -> Tensor:
        ctx.num_inputs = num_inputs
        ctx.save_for_backward(scale, once, *tensors[num_inputs:])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scale, once, *grads = ctx.saved_tensors
        upstream = grad_loss * scale
        wanted = zip(grads, ctx.needs_input_grad[4 : 4 + ctx.num_inputs], strict=True)
        scaled = [_scaled(grad, upstream) if needed else None for grad, needed in wanted]
        if once is not None and torch.is_grad_enabled():
            tie = once.sum()
            scaled = [None if grad is None else grad + tie.to(grad) for grad in scaled]
        return (None, None, None, None, *scaled, *(None for _ in grads))


def with_stored_gradient(
    op: str, loss: Tensor, scale: Tensor, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]
) -> Tensor:
    """``loss`` (0-d, detached) of ``op`` whose gradient in ``inputs[i]`` is ``scale * grads[i]``, once differentiable.

    The caller gives up ``grads``: see Note [Handing out].
    """
    # A compiled graph has no second backward pass anyway.
    once = None if torch.compiler.is_compiling() else _Once.apply(op, *inputs)
    return _StoredGradient.apply(loss, scale, once, len(inputs), *inputs, *grads)
