"""Liger's Triton loss beside ours under Triton's interpreter; run by test_rivals_liger.py with TRITON_INTERPRET=1.

The interpreter must be chosen before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.grpo_cases import make_case
from support.rival_libraries import import_rival

from zoomzero_kernels import grpo_loss, selective_logps
from zoomzero_kernels.policy import rows

rival = import_rival("liger_kernel.transformers.grpo_loss")


# The rival takes advantages [B] and logits [B, T + 1, V] whose last position it ignores.
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("unbiased_kl", [False, True])
@pytest.mark.parametrize("back_end", ["native", "triton"])
def test_equals_liger_with_one_advantage_a_sequence(
    loss_type: str, level: str, unbiased_kl: bool, back_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "back_end", lambda logits: back_end)
    case = make_case(4, 6, 37)
    case.mask[:, 0] = True
    logits = case.logits.float()
    # Near enough to the policy that some ratios lie inside the clip range and some outside it.
    old = selective_logps(logits, case.token_ids, temperature=0.9) + 0.3 * torch.randn(
        4, 6, generator=torch.Generator().manual_seed(3)
    )
    advantages = torch.tensor([1.0, -0.7, 0.4, -1.3])
    results: list[tuple[Any, ...]] = []
    leaf = logits.clone().requires_grad_()
    ours = grpo_loss(
        leaf, case.token_ids, advantages, case.mask, old_logps=old, ref_logps=case.ref_logps, temperature=0.9, beta=0.1,
        kl_clamp=None, loss_type=loss_type, max_completion_length=9, num_items=31.0, importance_sampling_level=level,
        unbiased_kl=unbiased_kl,
    )  # fmt: skip
    results.append((ours.loss.detach(), *torch.autograd.grad(ours.loss * 1.5, leaf), ours.kl, ours.clip_fraction))
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 1)).requires_grad_()
    loss, (kl, clip_fraction) = rival.triton_grpo_loss(
        padded, old, case.ref_logps, case.token_ids, advantages, case.mask.float(), temperature=0.9, beta=0.1,
        eps_low=0.2, eps_high=0.28, inplace=False, loss_type=loss_type, max_completion_length=9,
        importance_sampling_level=level, reduce=True, num_items_in_batch=31.0, use_bias_correction_kl=unbiased_kl,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss * 1.5, padded)
    results.append((loss.detach(), grad[:, :-1], kl.detach(), clip_fraction.detach()))
    assert 0 < ours.clip_fraction < 1
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("back_end", ["native", "triton"])
def test_log_probabilities_equal_liger(back_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "back_end", lambda logits: back_end)
    case = make_case(3, 5, 2101)
    padded = torch.nn.functional.pad(case.logits.float(), (0, 0, 0, 1))
    expected = rival.fused_selective_log_softmax(padded, case.token_ids, temperature=0.7)
    ours = selective_logps(case.logits.float(), case.token_ids, temperature=0.7)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
