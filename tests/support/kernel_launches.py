"""Launches of every Triton kernel on small inputs, and what they should leave: shared by the tests of the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from support.grpo_cases import make_case
from torch import Tensor

from zoomzero_kernels import token_advantages
from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.objectives import row_options
from zoomzero_kernels.policy.options import checked_options
from zoomzero_kernels.policy.tensors import LogpOutputs, LogpSlopes, LogpStatistics, PolicyTensors, RowOutputs
from zoomzero_kernels.triton_kernels.launch import Launch
from zoomzero_kernels.triton_kernels.policy_rows_launch import (
    logp_rows_backward_launch,
    logp_rows_launch,
    policy_rows_launch,
    scale_rows_launch,
)
from zoomzero_kernels.triton_kernels.token_advantages_launch import token_advantages_launch
from zoomzero_kernels.triton_kernels.variants import NORMALIZATIONS

ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Expected:
    """A launch, the tensors it writes (poisoned with NaN or zeroed, as the caller's contract says), and their truth."""

    launch: Launch
    outputs: tuple[Tensor, ...]
    truth: tuple[Tensor, ...]
    tolerance: float


def row_launches(vocab: int, dtype: torch.dtype) -> Iterator[Expected]:
    """The row kernels on [2, 3, vocab] logits; the truth is the CPU kernels'."""
    case = make_case(2, 3, vocab)
    case.mask[1, 2] = False
    logits = case.logits.to(dtype)
    tolerance = ROUNDING[dtype]
    weights = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    options = row_options(
        checked_options("grpo_loss", {"temperature": 0.7, "beta": 0.1, "unbiased_kl": True, "delta": 1.1})
    )
    tensors = PolicyTensors(
        case.token_ids, case.mask, case.advantages, weights, case.old_logps, case.ref_logps, weights + 0.1, weights / 9
    )
    truth_grad, grad = torch.empty_like(logits), torch.full_like(logits, torch.nan)
    truth = rows.policy_rows(logits, tensors, options, truth_grad)
    outputs = RowOutputs.zeros((2, 3), logits)
    launch = policy_rows_launch(logits, tensors, options, outputs, grad)
    yield Expected(launch, (*outputs, grad), (*truth, truth_grad), tolerance)

    inputs = (logits, case.token_ids, case.mask)
    truth_logps = rows.logp_rows(*inputs, 0.7)
    results = LogpOutputs.zeros((2, 3), logits)
    yield Expected(logp_rows_launch(*inputs, 0.7, results), results, truth_logps, 2e-5)

    slopes = LogpSlopes(*torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1)).unbind(0))
    saved = LogpStatistics(truth_logps.entropy.clone(), truth_logps.normaliser.clone())
    truth_grad, grad = torch.empty_like(logits), torch.full_like(logits, torch.nan)
    rows.logp_rows_backward(*inputs, saved, slopes, 0.7, truth_grad)
    launch = logp_rows_backward_launch(*inputs, 0.7, saved, slopes, grad)
    yield Expected(launch, (grad,), (truth_grad,), tolerance)

    grad, scale = logits.clone(), torch.tensor(-0.7)
    yield Expected(scale_rows_launch(grad, scale), (grad,), (logits * scale,), tolerance)


def advantage_launches() -> Iterator[Expected]:
    """token_advantages_kernel in every normalisation, three groups of unequal size in mixed order."""
    generator = torch.Generator().manual_seed(0)
    rewards, credit = torch.rand(9, 4, generator=generator), torch.randn(4, 3, generator=generator)
    segments = torch.randint(0, 3, (9, 70), generator=generator).to(torch.uint8)
    group_ids = torch.tensor([4, -2, 4, 9, -2, 4, -2, 4, 4])
    mask = torch.rand(9, 70, generator=generator) < 0.8
    for normalize in NORMALIZATIONS:
        truth = token_advantages(rewards, segments, credit, group_ids, mask, normalize=normalize)
        advantages = torch.full((9, 70), torch.nan)
        inputs = (rewards.double(), segments, credit.double(), group_ids, mask, normalize, 1e-6, advantages)
        yield Expected(token_advantages_launch(*inputs), (advantages,), (truth,), 1e-6)


def all_launches() -> Iterator[Expected]:
    """One launch of every variant: 272 is a multiple of 16, 101 is not."""
    for vocab in (272, 101):
        for dtype in ROUNDING:
            yield from row_launches(vocab, dtype)
    yield from advantage_launches()
