"""A computation inside a language-model head, in place of the logits of all positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class HeadProbe(Generic[Result]):
    """Computes something from the hidden states that reach a head, and lets the head see one position per row only.

    Note [Inside the head]: a loss is computed in a hook of the head, while the model's own forward runs. There the
    wrappers' work is done (PEFT's adapters, DDP, sharded weights gathered), and the logits of all positions are never
    made. The last position, which predicts nothing, still passes through, so that the output shows whether the model
    changes its logits after the head (a scale, a soft cap), which a loss computed in front of it would miss.

    Args:
        head: the head of the model whose forward runs inside the `with` block.
        compute: from the head and the hidden states [..., L, D] that reach it to the result.
        leaves: what of the result leaves the head in place of its logits; the model then returns it, so that
            wrappers that look at a forward's outputs (DDP, FSDP2) see where the backward pass begins. None lets the
            logits of the last position leave.
    """

    def __init__(
        self,
        head: torch.nn.Linear,
        compute: Callable[[torch.nn.Linear, Tensor], Result],
        leaves: Callable[[Result], Tensor] | None = None,
    ) -> None:
        self._head, self._compute, self._leaves = head, compute, leaves
        self.output: Result | None = None
        self.last_logits: Tensor | None = None

    def _before(self, head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        (hidden,) = arguments
        self.output = self._compute(self._head, hidden)
        return (hidden[:, -1:],)

    def _after(self, head: torch.nn.Module, arguments: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        self.last_logits = logits.detach()
        if self._leaves is None or self.output is None:
            return None
        return self._leaves(self.output)

    def __enter__(self) -> HeadProbe[Result]:
        self._handles = [
            self._head.register_forward_pre_hook(self._before),
            self._head.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
