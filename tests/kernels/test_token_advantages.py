"""token_advantages against golden numbers, the reference and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.places import GOLDEN
from torch import Tensor

from zoomzero_kernels import reference, token_advantages
from zoomzero_kernels.triton_kernels.variants import NORMALIZATIONS

# Rewards in the order format, zoom, iou, answer; segments REST, ANSWER.
THIRD = 1 / 3
CREDIT = torch.tensor([[THIRD, THIRD], [THIRD, THIRD], [THIRD, 0.0], [0.0, THIRD]])


def golden_inputs(golden: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rewards, segments, group ids and mask of a golden case."""
    rewards = torch.tensor([golden["rewards"][name] for name in ("format", "zoom", "iou", "answer")]).t().contiguous()
    position = torch.arange(golden["width"])
    answer = (position >= torch.tensor(golden["answer_start"]).unsqueeze(1)) & (
        position < torch.tensor(golden["span_start"]).unsqueeze(1)
    )
    mask = position < torch.tensor(golden["lengths"]).unsqueeze(1)
    names = sorted(set(golden["group"]))
    group_ids = torch.tensor([names.index(name) for name in golden["group"]])
    return rewards, answer.to(torch.uint8), group_ids, mask


@pytest.mark.parametrize("index", range(len(GOLDEN["advantage"])))
def test_matches_golden(index: int) -> None:
    golden = GOLDEN["advantage"][index]
    rewards, segments, group_ids, mask = golden_inputs(golden)
    # "separate" of the golden numbers averages format, iou and answer; "uniform_sum" halves answer and zoom.
    separate = torch.tensor([[THIRD], [0.0], [THIRD], [THIRD]])
    uniform = torch.tensor([[THIRD], [THIRD / 2], [THIRD], [THIRD / 2]])
    whole = torch.zeros_like(segments)
    ours = {
        "token_adv": token_advantages(rewards, segments, CREDIT, group_ids, mask),
        "separate": token_advantages(rewards, whole, separate, group_ids, mask, normalize="rewards"),
        "uniform_sum": token_advantages(rewards, whole, uniform, group_ids, mask, normalize="sequence"),
    }
    for name, advantages in ours.items():
        expected = torch.where(mask, torch.tensor(golden[name]), 0.0)
        torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=1e-5, msg=name)


def random_inputs(seed: int, batch: int, width: int, num_rewards: int, num_segments: int, groups: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(batch, num_rewards, generator=generator).round(decimals=1)
    segments = torch.randint(0, num_segments, (batch, width), generator=generator).to(torch.uint8)
    credit = torch.randn(num_rewards, num_segments, generator=generator)
    # Ids far apart, negative and in any order.
    group_ids = torch.randint(0, groups, (batch,), generator=generator) * 1_000_003_000_007 - 5
    mask = torch.rand(batch, width, generator=generator) < 0.7
    return [rewards, segments, credit, group_ids, mask]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 17),
    width=st.integers(1, 40),
    num_rewards=st.integers(1, 5),
    num_segments=st.integers(1, 6),
    groups=st.integers(1, 6),
    normalize=st.sampled_from(NORMALIZATIONS),
)
def test_matches_reference(
    seed: int, batch: int, width: int, num_rewards: int, num_segments: int, groups: int, normalize: str
) -> None:
    inputs = random_inputs(seed, batch, width, num_rewards, num_segments, groups)
    expected = reference.token_advantages(*inputs, normalize=normalize)
    ours = token_advantages(*inputs, normalize=normalize)
    # Groups whose rewards differ by rounding alone are zero here and noise over eps there.
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards", "sequence"])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_equal_rewards_give_exactly_zero(normalize: str, eps: float) -> None:
    # 0.1 + 0.2 + 0.7 in two orders differs in the last bit; that is no difference of rewards.
    rewards = torch.tensor([[0.1, 0.2, 0.7]]).expand(6, 3)
    credit = torch.tensor([[1.0, 3.0], [1.0, 1.5], [1.0, 3 / 7]])
    segments = torch.arange(8).remainder(2).to(torch.uint8).expand(6, 8)
    mask = torch.ones(6, 8, dtype=torch.bool)
    uniform = credit if normalize != "tokens" else torch.ones(3, 2)
    advantages = token_advantages(rewards, segments, uniform, torch.zeros(6).long(), mask, normalize=normalize, eps=eps)
    assert torch.equal(advantages, torch.zeros(6, 8))


def test_rounding_between_segments_is_no_difference() -> None:
    rewards = torch.ones(4, 3, dtype=torch.float64)
    credit = torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]], dtype=torch.float64)
    segments = torch.arange(6).remainder(2).to(torch.uint8).expand(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    advantages = token_advantages(rewards, segments, credit, torch.zeros(4).long(), mask)
    assert torch.equal(advantages, torch.zeros(4, 6))


@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards", "sequence"])
def test_group_of_one_keeps_mean_zero_and_std_one(normalize: str) -> None:
    rewards = torch.tensor([[0.5], [0.25]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    segments = torch.zeros(2, 3, dtype=torch.uint8)
    advantages = token_advantages(rewards, segments, torch.ones(1, 1), torch.tensor([3, -3]), mask, normalize=normalize)
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.0]]) / (1 + 1e-6)
    torch.testing.assert_close(advantages, expected)


def test_a_group_with_one_valid_token_is_zero() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    advantages = token_advantages(
        torch.tensor([[1.0], [0.0]]), torch.zeros(2, 2).to(torch.uint8), torch.ones(1, 1), torch.tensor([1, 1]), mask
    )
    assert torch.equal(advantages, torch.zeros(2, 2))


def test_masked_tokens_may_hold_any_segment() -> None:
    rewards, segments, credit, group_ids, mask = random_inputs(0, 6, 9, 2, 3, 2)
    clean = token_advantages(rewards, segments, credit, group_ids, mask)
    segments[~mask] = 255
    assert torch.equal(token_advantages(rewards, segments, credit, group_ids, mask.long()), clean)


# Bad values in the first, a middle and the last response, of a group of several and of one.
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("response", "reward"), [(0, 0), (3, 1), (5, 2)])
def test_a_reward_that_is_not_finite_is_named(value: float, response: int, reward: int) -> None:
    rewards, segments, credit, group_ids, mask = random_inputs(3, 6, 9, 3, 2, 2)
    rewards[response, reward] = value
    place = f"got {value} for response {response}, reward {reward}; leave NaN ones out with unscored='skip'"
    with pytest.raises(ValueError, match=f"^token_advantages: rewards must be finite, {place}"):
        token_advantages(rewards, segments, credit, group_ids, mask)
    if not math.isnan(value):
        with pytest.raises(ValueError, match=f"rewards must be finite, got {value} for response {response}"):
            token_advantages(rewards, segments, credit, group_ids, mask, unscored="skip")
    credit[1, 0] = value
    with pytest.raises(ValueError, match=f"credit must be finite, got {value} for reward 1, segment 0"):
        token_advantages(rewards.nan_to_num(0, 0, 0), segments, credit, group_ids, mask)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 12),
    groups=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    normalize=st.sampled_from(NORMALIZATIONS),
)
def test_unscored_responses_are_as_if_they_were_not_there(
    seed: int, batch: int, groups: int, share: float, normalize: str
) -> None:
    rewards, segments, credit, group_ids, mask = random_inputs(seed, batch, 11, 3, 4, groups)
    unscored = torch.rand(batch, generator=torch.Generator().manual_seed(seed + 1)) < share
    torch.manual_seed(seed)
    rewards[unscored, torch.randint(0, 3, (int(unscored.sum()),))] = math.nan
    scored = ~unscored
    ours = token_advantages(rewards, segments, credit, group_ids, mask, normalize=normalize, unscored="skip")
    assert torch.equal(ours[unscored], torch.zeros_like(ours[unscored]))
    alone = token_advantages(
        rewards[scored], segments[scored], credit, group_ids[scored], mask[scored], normalize=normalize
    )
    torch.testing.assert_close(ours[scored], alone, atol=1e-6, rtol=1e-6)
    truth = reference.token_advantages(rewards, segments, credit, group_ids, mask, normalize=normalize, unscored="skip")
    torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)


def test_unscored_responses_need_no_free_group_id() -> None:
    """Every id that could be made from another one is taken."""
    group_ids = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 1, 6, 6])
    rewards = torch.tensor([[1.0], [2.0], [3.0], [4.0], [math.nan], [5.0], [7.0]])
    whole = torch.ones(7, 2, dtype=torch.bool)
    inputs = (rewards, whole.to(torch.uint8) * 0, torch.ones(1, 1), group_ids, whole)
    ours = token_advantages(*inputs, normalize="segments", unscored="skip")
    torch.testing.assert_close(ours, reference.token_advantages(*inputs, normalize="segments", unscored="skip"))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    batch = shape[0]
    segments = torch.zeros(shape, dtype=torch.uint8)
    result = token_advantages(
        torch.rand(batch, 2),
        segments,
        torch.ones(2, 3),
        torch.zeros(batch).long(),
        torch.zeros(shape, dtype=torch.bool),
    )
    assert result.shape == shape
    assert result.dtype == torch.float32


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_is_deterministic_and_ignores_order(normalize: str) -> None:
    rewards, segments, credit, group_ids, mask = random_inputs(5, 32, 64, 4, 3, 4)
    first = token_advantages(rewards, segments, credit, group_ids, mask, normalize=normalize)
    again = token_advantages(rewards, segments, credit, group_ids, mask, normalize=normalize)
    assert torch.equal(first, again)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    shuffled = token_advantages(
        rewards[order], segments[order], credit, group_ids[order], mask[order], normalize=normalize
    )
    torch.testing.assert_close(shuffled, first[order], atol=1e-6, rtol=1e-6)


def test_opcheck_and_compile() -> None:
    inputs = random_inputs(2, 6, 9, 2, 3, 2)
    torch.library.opcheck(torch.ops.zoomzero.token_advantages.default, (*inputs, "tokens", 1e-6))
    compiled = torch.compile(token_advantages, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), token_advantages(*inputs))
    inputs[0][1] = math.nan
    assert torch.equal(compiled(*inputs, unscored="skip"), token_advantages(*inputs, unscored="skip"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"normalize": "batch"}, ValueError, "unknown normalize, got 'batch'; use one of tokens, segments, rewards"),
        ({"unscored": "drop"}, ValueError, "unknown unscored, got 'drop'; use one of error, skip"),
        ({"eps": -1.0}, ValueError, "eps must be finite and >= 0, got -1.0"),
        ({"rewards": torch.ones(6)}, ValueError, r"rewards must be floating point \[B, R\]"),
        ({"rewards": torch.ones(6, 2).long()}, ValueError, r"rewards must be floating point \[B, R\], got int64"),
        ({"segments": torch.zeros(6, 9)}, ValueError, r"segments must be uint8 \[B, T\] with B = 6, got float32"),
        ({"segments": torch.zeros(5, 9).to(torch.uint8)}, ValueError, r"segments must be uint8 \[B, T\] with B = 6"),
        ({"segments": torch.full((6, 9), 3).to(torch.uint8)}, ValueError, r"segments must be in \[0, 3\)"),
        ({"credit": torch.ones(3, 3)}, ValueError, r"credit must be \[R, S\] with R = 2"),
        ({"credit": torch.ones(2, 3).long()}, TypeError, "credit must be floating point"),
        ({"group_ids": torch.zeros(5).long()}, ValueError, r"group_ids must be int64 \[B\] with B = 6"),
        ({"group_ids": torch.zeros(6)}, ValueError, r"group_ids must be int64 \[B\] with B = 6, got float32"),
        ({"mask": torch.ones(6, 9)}, TypeError, "mask must be bool or integer 0/1, got float32"),
        ({"mask": torch.ones(6, 8).bool()}, ValueError, r"mask must be \[B, T\] = \[6, 9\]"),
        ({"mask": torch.full((6, 9), 3)}, ValueError, "mask must hold 0 and 1 only, got 3"),
        ({"credit": torch.ones(2, 3, device="meta")}, ValueError, "credit must be on cpu, got meta"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    rewards, segments, credit, group_ids, _ = random_inputs(0, 6, 9, 2, 3, 2)
    arguments = {"rewards": rewards, "segments": segments, "credit": credit, "group_ids": group_ids}
    arguments |= {"mask": torch.ones(6, 9, dtype=torch.bool), **change}
    with pytest.raises(error, match=f"token_advantages: {message}"):
        token_advantages(**arguments)
