"""Multiplying a gradient that the forward pass stored by the gradient that reaches the loss."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_gradient(grad: Tensor, scale: Tensor) -> Tensor:
    """``grad * scale`` for a 0-d ``scale``, without a second buffer where none is needed.

    On a plain CPU tensor a scale of exactly 1 returns ``grad`` itself. Otherwise the product overwrites ``grad`` when
    autograd will not run this graph again, and allocates when it will.
    """
    # Tracers see tensors without values (subclasses of Tensor outside of dynamo), and plan the memory themselves.
    if torch.compiler.is_compiling() or type(grad) is not torch.Tensor or type(scale) is not torch.Tensor:
        return grad * scale.to(grad.dtype)
    if scale.device.type == "cpu" and float(scale) == 1.0:
        return grad
    if not _graph_is_kept():
        return grad.mul_(scale)
    return grad * scale


def _graph_is_kept() -> bool:
    """Whether the running backward keeps its graph (retain_graph=True), so that the stored gradient is needed again."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
