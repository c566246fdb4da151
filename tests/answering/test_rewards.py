"""Rewards: the golden cases, and what the authors' functions get wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from support.places import GOLDEN

from zoomzero.responses import parse
from zoomzero.rewards import TOKEN_ADV_CREDIT, answer_reward, format_reward, iou_reward, zoom_reward

GOOD = "<think>See <time>(1, 2)</time>.</think>\n<answer>B</answer>\n<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"


@pytest.mark.parametrize("case", GOLDEN["response"])
def test_golden(case: dict[str, Any]) -> None:
    text = case["response"]
    assert format_reward(text) == case["format"]
    assert iou_reward(text, case["spans_gt"]) == pytest.approx(case["iou"], abs=1e-12)
    assert answer_reward(text, case["answer_gt"]) == case["answer"]
    # The authors look for the second answer inside the true letter, so that an empty one is "right". Ours is not.
    expected = 0.0 if case["zoom_response"] == "" else case["zoom"]
    assert zoom_reward(case["zoom_response"], case["answer_gt"]) == expected
    # A response that was parsed already scores the same.
    response = parse(text)
    assert format_reward(response) == case["format"]
    assert iou_reward(response, case["spans_gt"]) == pytest.approx(case["iou"], abs=1e-12)
    assert answer_reward(response, case["answer_gt"]) == case["answer"]
    assert zoom_reward(parse(case["zoom_response"]), case["answer_gt"]) == expected


def test_golden_totals_follow_from_the_four_rewards() -> None:
    for case in GOLDEN["response"]:
        text = case["response"]
        total = (
            (answer_reward(text, case["answer_gt"]) + case["zoom"]) / 2
            + format_reward(text)
            + iou_reward(text, case["spans_gt"])
        ) / 3
        assert total == pytest.approx(case["total"], abs=1e-12)


@pytest.mark.parametrize("text", ["", " ", "(", ")", "()", "B.", "B. a dog", "AB", "b", "C", "<answer></answer>", "\n"])
def test_zoom_reward_is_zero_for_anything_but_the_letter(text: str) -> None:
    assert zoom_reward(text, "B") == 0.0


@pytest.mark.parametrize("text", ["B", "(B)", " B\n", "<answer>B</answer>", GOOD])
def test_zoom_reward_is_one_for_the_letter(text: str) -> None:
    assert zoom_reward(text, "B") == 1.0
    assert zoom_reward(text, "(B)") == 1.0


def test_format_reward_knows_the_number_of_options_and_the_variant_without_thinking() -> None:
    eighth = GOOD.replace(">B<", ">H<")
    assert (format_reward(eighth), format_reward(eighth, num_options=8), format_reward(GOOD, num_options=2)) == (
        0,
        1,
        1,
    )
    direct = GOOD[GOOD.index("<answer>") :]
    assert (format_reward(direct), format_reward(direct, thinking=False)) == (0, 1)
    assert format_reward(parse(direct, thinking=False)) == 1


def test_spans_are_cut_to_the_video_where_its_length_is_known() -> None:
    text = GOOD.replace("(41.0, 44.5)", "(30, 99)")
    assert iou_reward(text, [(20.3, 32.0)], duration=32.0) == 1.0
    assert iou_reward(text, [(20.3, 32.0)]) == pytest.approx(11.7 / 78.7)
    assert iou_reward(text, [(20.3, 32.0)], duration=10.0) == 0.0


@pytest.mark.parametrize("letter", ["", " ", "()", "AB", "b", "A dog", "1"])
def test_a_true_answer_must_be_a_letter(letter: str) -> None:
    for reward in (answer_reward, zoom_reward):
        with pytest.raises(ValueError, match="letter must be one letter A to Z, got"):
            reward("B", letter)


def test_errors_of_text_and_spans() -> None:
    for text in (None, 3, b"A"):
        with pytest.raises(TypeError, match="text must be a string, got"):
            zoom_reward(text, "A")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not end before it starts"):
        iou_reward(GOOD, [(5, 2)])


def test_published_credit_gives_the_published_token_rewards() -> None:
    rewards = torch.tensor([1.0, 0.5, 0.25, 0.125])
    per_segment = rewards @ TOKEN_ADV_CREDIT
    outside = (1.0 + 0.5 + 0.25) / 3
    inside = (1.0 + 0.5 + 0.125) / 3
    assert TOKEN_ADV_CREDIT.dtype == torch.float32
    assert TOKEN_ADV_CREDIT.shape == (4, 3)
    torch.testing.assert_close(per_segment, torch.tensor([outside, inside, outside]))


# Megabytes of what breaks a careless pattern or an eval.
HOSTILE = [
    "<think>" * 150_000,
    "<think><time>" * 80_000 + "</think>",
    "<think>" + "<time></time>" * 80_000 + "</think>\n<answer>B</answer>\n<glue>[(8, 9)]</glue>x",
    "</think>" + " " * 1_000_000 + "<answer>",
    "<answer>" * 130_000 + "B" + "</answer>" * 10_000,
    "<glue>" + "[" * 1_000_000 + "</glue>",
    "<glue>[" + "(" * 1_000_000 + "]</glue>",
    "<glue>[" + "9" * 1_000_000 + "]</glue>",
    "<glue>[(" + "9" * 10_000 + ", " + "9" * 10_000 + ")]</glue>",
    "<glue>[" + "(1, 2), " * 120_000 + "]</glue>",
    "<glue>[" + "(1, 2)" + " " * 1_000_000 + "x]</glue>",
    "<glue>[(1" + " " * 1_000_000 + "]</glue>",
    "<glue>[(1, 2)" + ",\n" * 500_000 + "]</glue>",
    "<glue>__import__('os').system('true')</glue>",
    "<glue>[(nan, nan)]</glue>", "<glue>[(0, inf)]</glue>", "<glue>[(1, 1e999)]</glue>", "<glue>[(1,)]</glue>",
    "<glue>[(1_0, 2_0)]</glue>", "<glue>[(٣, ٤)]</glue>", "<glue>[(1, 2) (3, 4)]</glue>", "<glue>[,]</glue>",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_scores_zero_at_once(text: str) -> None:
    begin = time.process_time()
    assert format_reward(text) == 0.0
    assert iou_reward(text, [(0, 5)]) == 0.0
    assert answer_reward(text, "C") == 0.0
    assert zoom_reward(text, "C") == 0.0
    assert time.process_time() - begin < 1.0
