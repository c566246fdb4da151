"""Importance weights of a sampler that is not the policy: TRL's own numbers, and an unbiased gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zoomzero.rollouts.corrections import MODES, SamplingGap, importance_weights


def _by_trl(policy: Tensor, sampler: Tensor, mask: Tensor, mode: str, low: float | None, high: float | None) -> Tensor:
    """TRL 1.16's lines in GRPOTrainer._generate_and_score_completions, over lists."""
    rows = []
    for ours, theirs, keep in zip(policy.tolist(), sampler.tolist(), mask.tolist(), strict=True):
        apart = [0.0 if not k or math.isnan(t) else o - t for o, t, k in zip(ours, theirs, keep, strict=True)]
        if mode.startswith("sequence"):
            apart = [sum(apart)] * len(apart)
        row = []
        for value in (math.exp(difference) for difference in apart):
            below, above = low is not None and value < low, high is not None and value > high
            if mode.endswith("mask"):
                row.append(0.0 if below or above else value)
            else:
                row.append(low if below else high if above else value)  # type: ignore[arg-type]
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), [(None, 3.0), (0.7, 1.4), (None, None)])
def test_weights_are_trls(mode: str, low: float | None, high: float | None) -> None:
    generator = torch.Generator().manual_seed(2)
    policy, sampler = (-3 * torch.rand(40, 6, generator=generator) for _ in range(2))
    sampler[3, 2] = torch.nan
    mask = torch.arange(6) < torch.randint(0, 7, (40, 1), generator=generator)
    found = importance_weights(policy, sampler, mask, mode=mode, clip_min=low, clip_max=high)
    torch.testing.assert_close(found, _by_trl(policy, sampler, mask, mode, low, high), rtol=1e-5, atol=1e-6)
    if high is not None:
        assert float(found.max()) <= high


def test_weighted_samples_have_the_policys_mean() -> None:
    """Tokens drawn from q and weighed by p / q have the mean under p of any function."""
    generator = torch.Generator().manual_seed(0)
    policy, sampler, value = (torch.randn(8, generator=generator) for _ in range(3))
    policy, sampler = policy.log_softmax(0), sampler.log_softmax(0)
    tokens = torch.multinomial(sampler.exp(), 200_000, replacement=True, generator=generator)
    weights = importance_weights(
        policy[tokens][:, None], sampler[tokens][:, None], torch.ones(len(tokens), 1).bool(), mode="token_truncate"
    )
    expected = float((policy.exp() * value).sum())
    assert float((weights[:, 0] * value[tokens]).mean()) == pytest.approx(expected, abs=0.02)
    assert abs(float(value[tokens].mean()) - expected) > 0.1


def test_the_gap_of_all_processes() -> None:
    policy, sampler = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, torch.nan]])
    mask = torch.tensor([[True, True]])
    weights = importance_weights(policy, sampler, mask, mode="token_mask", clip_max=1.2)
    assert weights.tolist() == [[0.0, 1.0]]
    gap = SamplingGap.of(policy, sampler, mask, weights)
    metrics = SamplingGap.metrics([gap, SamplingGap.of(policy, policy - 0.1, mask, torch.ones(1, 2))])
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.5)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.7 / 3)
    assert metrics["sampling/importance_sampling_ratio/min"] == 0.0
    assert SamplingGap.metrics([]) == {}


def test_other_modes_are_refused() -> None:
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"mode must be one of token_truncate, .*, got 'none'; pick one"):
        importance_weights(zeros, zeros, zeros.bool(), mode="none")
