"""Inputs and comparisons that the tests of the policy losses share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Case:
    """One batch: logits [B, T, V] in float64 and the [B, T] tensors of a policy loss."""

    logits: Tensor
    token_ids: Tensor
    advantages: Tensor
    mask: Tensor
    old_logps: Tensor
    ref_logps: Tensor

    @property
    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.token_ids, self.advantages, self.mask


def make_case(batch: int = 3, width: int = 5, vocab: int = 37, *, scale: float = 2.0, seed: int = 0) -> Case:
    """Ratios on both sides of the clip range, advantages of both signs and zero, ragged and interior masks."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Rounded to bfloat16, so that every dtype sees the same logits and only the maths differs.
    logits = (randn(batch, width, vocab) * scale).bfloat16().double()
    token_ids = torch.randint(0, vocab, (batch, width), generator=generator)
    logps = logits.log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    advantages = randn(batch, width)
    advantages.view(-1)[::7] = 0.0
    mask = torch.rand(batch, width, generator=generator) < 0.8
    mask[0, 0] = True
    return Case(
        logits=logits,
        token_ids=token_ids,
        advantages=advantages.float(),
        mask=mask,
        old_logps=(logps + 0.4 * randn(batch, width)).float(),
        ref_logps=(logps + 0.8 * randn(batch, width)).float(),
    )


def assert_within_budget(ours: Tensor, same_dtype: Tensor, truth: Tensor, epsilon: float, what: str = "") -> None:
    """Our largest error is at most twice that of plain torch in the same dtype, plus a little for rounding luck."""
    budget = 2 * (same_dtype.double() - truth).abs().max().item() + epsilon
    error = (ours.double() - truth).abs().max().item()
    assert error <= budget, f"{what}: error {error:.3e} over the budget {budget:.3e}"


def with_gradient(
    function: Any, logits: Tensor, *args: Any, upstream: float = 1.0, **options: Any
) -> tuple[Any, Tensor]:
    """Output of a loss function and the gradient of ``upstream * loss`` in the logits."""
    leaf = logits.clone().requires_grad_()
    output = function(leaf, *args, **options)
    (output.loss * upstream).backward()
    assert leaf.grad is not None
    return output, leaf.grad
