"""Tests of the checks that ops share: when values are looked at, and what wrong ones are called."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from zoomzero_kernels import frame_resample, grpo_loss, selective_logps, token_advantages
from zoomzero_kernels.host.checks import OPTION, values_are_checked


def test_the_cpu_is_always_checked_and_other_devices_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = torch.empty(1, device="meta")
    monkeypatch.delenv(OPTION, raising=False)
    assert values_are_checked(torch.empty(1))
    assert not values_are_checked(elsewhere)
    monkeypatch.setenv(OPTION, "1")
    assert values_are_checked(elsewhere)


IDS = torch.tensor([[7, 1]])
WHOLE = torch.ones(1, 2, dtype=torch.bool)
FRAMES = torch.zeros(2, 28, 28, 3, dtype=torch.uint8)
WRONG_VALUES: list[tuple[Callable[[str], object], str]] = [
    (lambda d: grpo_loss(torch.zeros(1, 2, 5, device=d), IDS.to(d), torch.ones(1, 2, device=d), WHOLE.to(d)), "got 7"),
    (
        lambda d: grpo_loss(torch.zeros(1, 2, 9, device=d), IDS.to(d), torch.ones(1, 2, device=d), 2 * IDS.to(d)),
        "mask must hold 0 and 1 only, got 14",
    ),
    (lambda d: selective_logps(torch.zeros(1, 2, 5, device=d), IDS.to(d)), "got 7"),
    (
        lambda d: token_advantages(
            torch.ones(1, 1, device=d),
            IDS.to(d, torch.uint8),
            torch.ones(1, 2, device=d),
            IDS[0, :1].to(d),
            WHOLE.to(d),
        ),
        "segments must be in .* got 7",
    ),
    (
        lambda d: token_advantages(
            torch.tensor([[1.0], [math.inf]], device=d),
            IDS.to(d, torch.uint8).T,
            torch.ones(1, 8, device=d),
            IDS[0].to(d),
            WHOLE.to(d).T,
        ),
        "rewards must be finite, got inf for response 1, reward 0",
    ),
    (
        lambda d: frame_resample(FRAMES.to(d), IDS[0].to(d), size=(28, 28), mean=(0.5,) * 3, std=(0.5,) * 3),
        "frame_indices must be between 0 and 1, got values from 1 to 7",
    ),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(("call", "message"), WRONG_VALUES)
def test_wrong_values(
    monkeypatch: pytest.MonkeyPatch, device: str, call: Callable[[str], object], message: str
) -> None:
    monkeypatch.setenv(OPTION, "1")
    with pytest.raises(ValueError, match=message):
        call(device)
