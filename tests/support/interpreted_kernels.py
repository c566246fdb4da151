"""Tests of the Triton kernels under Triton's interpreter; run by test_triton_kernels.py with TRITON_INTERPRET=1.

The interpreter must be chosen before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import extreme_rows
from support.grpo_cases import make_case
from torch import Tensor

from zoomzero_kernels import (
    grpo_loss,
    linear_grpo_loss,
    linear_selective_logps,
    selective_logps,
    token_advantages,
)
from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.objectives import PolicyOptions, row_options
from zoomzero_kernels.policy.options import checked_options
from zoomzero_kernels.policy.tensors import LogpOutputs, LogpSlopes, LogpStatistics, PolicyTensors, RowOutputs
from zoomzero_kernels.triton_kernels.launch import run
from zoomzero_kernels.triton_kernels.policy_rows_launch import (
    logp_rows_backward_launch,
    logp_rows_launch,
    policy_rows_launch,
    scale_rows_launch,
)
from zoomzero_kernels.triton_kernels.token_advantages_launch import token_advantages_launch

# Rounding to the logits' dtype, and exp of two different implementations.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


# 8193 is a block and one logit, 37 less than a block, 1 the least; 8208 takes the aligned path.
@pytest.mark.parametrize("vocab", [1, 37, 8193, 8208])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("given", [(False, False), (True, True)], ids=str)
@pytest.mark.parametrize(
    "given_options",
    [
        {},
        {"unbiased_kl": True, "delta": 1.1},
        {"loss_type": "cispo", "clip_high": 1.1},
        {"loss_type": "sapo", "sapo_temperature_neg": 3.0},
        {"loss_type": "dppo_tv", "clip_low": 0.01, "clip_high": 0.02, "ratio_cap": 1.2},
        {"loss_type": "dppo_kl", "clip_low": 0.01, "clip_high": 0.02},
        {"loss_type": "dro", "dro_beta": 0.3},
        {"loss_type": "gpg"},
    ],
    ids=str,
)
def test_policy_rows(vocab: int, dtype: torch.dtype, given: tuple[bool, bool], given_options: Any) -> None:
    case = make_case(2, 4, vocab)
    logits = case.logits.to(dtype)
    logits[0, 0] *= 100
    if given_options.get("loss_type") != "dro":  # whose loss of an impossible token is infinite
        logits[1, 1, 1 : vocab // 2] = -math.inf
    logits[~case.mask] = math.nan
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    old, ref = (tensor if flag else None for tensor, flag in zip((case.old_logps, case.ref_logps), given, strict=True))
    options = {"temperature": 0.7, "beta": 0.1, "kl_clamp": 5.0, **given_options}
    tensors = PolicyTensors(case.token_ids, case.mask, case.advantages, weights, old, ref)
    if all(given):
        tensors = tensors._replace(factors=(weights - 0.2).clamp(min=0), entropy_weights=weights / 9)
    arguments = (tensors, row_options(checked_options("grpo_loss", options)))
    expected_grad = torch.empty_like(logits)
    expected = rows.policy_rows(logits, *arguments, expected_grad)
    outputs = RowOutputs.zeros((2, 4), logits)
    grad = torch.full_like(logits, math.nan)
    run(policy_rows_launch(logits, *arguments, outputs, grad))
    for name, got, want in zip(outputs._fields, outputs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(grad, expected_grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    # Without a gradient nothing is written; in place the logits become the gradient.
    again = RowOutputs.zeros((2, 4), logits)
    before = logits.clone()
    run(policy_rows_launch(logits, *arguments, again, None))
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again.loss, outputs.loss)
    run(policy_rows_launch(logits, *arguments, again, logits))
    assert torch.equal(logits, grad)


def test_unbiased_kl_far_from_the_reference() -> None:
    case = make_case(2, 4, 37)
    ref = case.ref_logps + torch.tensor([0.0, 5.0, 20.0, 60.0])
    tensors = PolicyTensors(case.token_ids, case.mask, case.advantages, torch.ones(2, 4), case.old_logps, ref)
    arguments = (tensors, PolicyOptions(beta=0.1, unbiased_kl=1.0))
    logits = case.logits.float()
    expected, grad = torch.empty_like(logits), torch.empty_like(logits)
    rows.policy_rows(logits, *arguments, expected)
    run(policy_rows_launch(logits, *arguments, RowOutputs.zeros((2, 4), logits), grad))
    torch.testing.assert_close(grad, expected, rtol=2e-5, atol=2e-5)


def test_strided_logits() -> None:
    case = make_case(3, 4, 50)
    wide = torch.full((3, 9, 64), math.nan)
    logits = wide[:, 3:7, :50]
    logits.copy_(case.logits)
    tensors = PolicyTensors(case.token_ids, case.mask, case.advantages, torch.ones(3, 4), None, None)
    arguments = (tensors, PolicyOptions())
    expected_grad = torch.empty(3, 4, 50)
    expected = rows.policy_rows(logits, *arguments, expected_grad)
    outputs = RowOutputs.zeros((3, 4), logits)
    run(policy_rows_launch(logits, *arguments, outputs, logits))
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(logits, expected_grad)
    wide[:, 3:7, :50] = math.nan
    assert wide.isnan().all()


@pytest.mark.parametrize("vocab", [1, 37, 8208])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("with_entropy", [False, True])
def test_logp_rows(vocab: int, dtype: torch.dtype, with_entropy: bool) -> None:
    case = make_case(2, 4, vocab)
    logits = case.logits.to(dtype)
    logits[0, 1, 1 : vocab // 2] = -math.inf
    expected = rows.logp_rows(logits, case.token_ids, case.mask, 0.7)
    outputs = LogpOutputs.zeros((2, 4), logits)
    run(logp_rows_launch(logits, case.token_ids, case.mask, 0.7, outputs))
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    slopes = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1))
    saved = LogpStatistics(outputs.entropy, outputs.normaliser)
    wanted = LogpSlopes(slopes[0], slopes[1] if with_entropy else None)
    want_grad, grad = torch.empty_like(logits), torch.full_like(logits, math.nan)
    rows.logp_rows_backward(logits, case.token_ids, case.mask, saved, wanted, 0.7, want_grad)
    run(logp_rows_backward_launch(logits, case.token_ids, case.mask, 0.7, saved, wanted, grad))
    torch.testing.assert_close(grad, want_grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("vocab", [37, 8208])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.3, math.nan])
def test_scale_rows(vocab: int, dtype: torch.dtype, scale: float) -> None:
    grad = make_case(2, 4, vocab).logits.to(dtype)
    expected = grad * torch.tensor(scale)
    run(scale_rows_launch(grad, torch.tensor(scale)))
    tolerance = 0.0 if scale == 1.0 else TOLERANCE[dtype]  # the interpreter rounds bfloat16 its own way
    torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def run_advantages(inputs: list[Tensor], normalize: str, eps: float = 1e-6) -> Tensor:
    rewards, segments, credit, group_ids, mask = inputs
    advantages = torch.full(mask.shape, math.nan)
    run(
        token_advantages_launch(
            rewards.double(), segments, credit.double(), group_ids, mask, normalize, eps, advantages
        )
    )
    return advantages


# 70 responses need two blocks of members, 600 tokens two blocks of tokens.
@pytest.mark.parametrize(("batch", "width", "groups"), [(1, 1, 1), (9, 600, 3), (70, 5, 2)])
@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards", "sequence", "none"])
def test_token_advantages(batch: int, width: int, groups: int, normalize: str) -> None:
    generator = torch.Generator().manual_seed(batch)
    inputs = [
        torch.rand(batch, 4, generator=generator),
        torch.randint(0, 3, (batch, width), generator=generator).to(torch.uint8),
        torch.randn(4, 3, generator=generator),
        torch.randint(0, groups, (batch,), generator=generator) * 10**12 - 7,
        torch.rand(batch, width, generator=generator) < 0.8,
    ]
    inputs[1][~inputs[4]] = 200
    expected = token_advantages(*inputs, normalize=normalize)
    torch.testing.assert_close(run_advantages(inputs, normalize), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards", "sequence"])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_equal_rewards_give_exactly_zero(normalize: str, eps: float) -> None:
    inputs = [
        torch.tensor([[0.1, 0.2, 0.7]]).repeat(6, 1),
        torch.zeros(6, 8, dtype=torch.uint8),
        torch.rand(3, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(6, dtype=torch.int64),
        torch.ones(6, 8, dtype=torch.bool),
    ]
    assert torch.equal(run_advantages(inputs, normalize, eps), torch.zeros(6, 8))


def test_a_segment_without_a_column_shows_as_nan() -> None:
    segments = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    inputs = [torch.ones(1, 1), segments, torch.ones(1, 2), torch.zeros(1).long(), torch.ones(1, 3, dtype=torch.bool)]
    assert run_advantages(inputs, "none").isnan().tolist() == [[False, False, True]]


def test_public_functions_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(2, 4, 37)
    hidden = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(37, 8, generator=torch.Generator().manual_seed(3))
    transposed = case.logits.float().transpose(1, 2).contiguous().transpose(1, 2)
    options = {"old_logps": case.old_logps, "ref_logps": case.ref_logps, "beta": 0.1}

    def results() -> list[Tensor]:
        collected: list[Tensor] = []
        for logits in (case.logits.float(), transposed):
            leaf = logits.detach().requires_grad_()
            loss = grpo_loss(leaf, *case.tokens, **options).loss
            logps, entropy = selective_logps(leaf, case.token_ids, with_entropy=True)
            collected += torch.autograd.grad(loss * 2 + (logps + entropy).mean(), leaf)
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = linear_grpo_loss(*leaves, *case.tokens, **options).loss
        loss = loss + linear_selective_logps(*leaves, case.token_ids).mean()
        return [*collected, *torch.autograd.grad(loss, leaves)]

    expected = results()
    monkeypatch.setattr(rows, "back_end", lambda logits: "triton")
    for got, want in zip(results(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("token", [-1, 37, 10**12])
def test_a_token_outside_the_vocabulary_shows_as_nan(token: int) -> None:
    logits = torch.zeros(1, 2, 37)
    ids = torch.tensor([[token, 3]])
    results = LogpOutputs.zeros((1, 2), logits)
    run(logp_rows_launch(logits, ids, torch.ones(1, 2, dtype=torch.bool), 1.0, results))
    assert results.logps.isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_extreme_rows(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(rows, "back_end", lambda logits: "triton")
    for temperature in extreme_rows.TEMPERATURES:
        for scale in extreme_rows.SCALES:
            extreme_rows.check_log_probabilities(dtype, temperature, scale)
        extreme_rows.check_vocabulary_of_one(dtype, temperature)
    extreme_rows.check_any_temperature(dtype)
    for level, fault in extreme_rows.FAULTS:
        for on_policy in (False, True):
            extreme_rows.check_advantage_of_zero(dtype, level, fault, on_policy)
    for fault in ("nan", "ratio"):
        extreme_rows.check_hidden_states_under_an_advantage_of_zero(fault)
    extreme_rows.check_overflowing_ratio_beside_a_kl_term(dtype)
    for bad in (math.nan, math.inf):
        extreme_rows.check_no_upstream_gradient(dtype, bad)
