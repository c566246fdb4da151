"""Positions equal tables made by hand from the published rule, for every family; nothing else computes them."""

from collections.abc import Sequence

import pytest
import torch
from support.vision_prompts import Image, Video, config_of, lay_out
from transformers import Qwen2Config

from zoomzero.models import mrope_positions

ALL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def _positions(model_type: str, parts: Sequence[int | Image | Video], **options: int) -> tuple[list[list[int]], int]:
    prompt = lay_out(model_type, parts)
    positions, following = mrope_positions(config_of(model_type, **options), prompt.inputs)
    assert positions.dtype == torch.int64
    return positions.tolist(), following


@pytest.mark.parametrize("model_type", ALL)
def test_text_alone_counts_on(model_type: str) -> None:
    assert _positions(model_type, [4]) == ([[0, 1, 2, 3]] * 3, 4)


@pytest.mark.parametrize("model_type", ALL)
def test_an_image_takes_its_larger_side(model_type: str) -> None:
    """Two text tokens, the start token, 2x3 tokens from 3 on, the end token at 3 + 3."""
    expected = [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7],
    ]
    assert _positions(model_type, [2, Image(2, 3), 1]) == (expected, 8)


def test_qwen2_vl_counts_temporal_patches() -> None:
    """Four patches of 1x2 tokens: the text goes on behind the last patch, not behind the wider side."""
    expected = [
        [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 5, 6],
        [0, 1, 2, 1, 2, 1, 2, 1, 2, 5, 6],
    ]
    assert _positions("qwen2_vl", [Video(4, 1, 2, seconds=9.0), 1]) == (expected, 7)


def test_qwen2_5_vl_counts_time() -> None:
    """1.5 seconds apart at two positions per second: every third position."""
    expected = [
        [0, 1, 1, 4, 4, 7, 7, 8, 9],
        [0, 1, 1, 1, 1, 1, 1, 8, 9],
        [0, 1, 2, 1, 2, 1, 2, 8, 9],
    ]
    assert _positions("qwen2_5_vl", [Video(3, 1, 2, seconds=1.5), 1]) == (expected, 10)


# Temporal positions of single-token patches: one floor of the whole product, neither of the seconds nor of its parts.
@pytest.mark.parametrize(
    ("seconds", "tokens_per_second", "times"),
    [
        (0.25, 2, [0, 0, 1, 1, 2, 2, 3, 3]),
        (0.75, 1, [0, 0, 1, 2, 3, 3, 4, 5]),
        (0.4, 2, [0, 0, 1, 2, 3, 4, 4, 5]),
        (1.0, 25, [0, 25, 50, 75]),
        (2 / 3, 4, [0, 2, 5, 8, 10, 13, 16, 18]),
        (0.1, 1, [0] * 10 + [1] * 10 + [2]),
        (1 / 30, 2, [0] * 15 + [1] * 15 + [2]),
    ],
)
def test_fractional_seconds(seconds: float, tokens_per_second: int, times: list[int]) -> None:
    positions, following = _positions(
        "qwen2_5_vl", [Video(len(times), 1, 1, seconds)], tokens_per_second=tokens_per_second
    )
    assert [time - 1 for time in positions[0][1:-1]] == times
    assert following == 1 + max(times) + 2


def test_the_floor_is_of_the_exact_product() -> None:
    """0.7 as float32 lies below 7/10: the tenth patch is not yet at 7, which rounding in float32 would make it."""
    positions, _ = _positions("qwen2_5_vl", [Video(11, 1, 1, 0.7)], tokens_per_second=1)
    assert positions[0][11] - 1 == 6
    prompt = lay_out("qwen2_5_vl", [Video(11, 1, 1, 0.7)])
    exact = {**prompt.inputs, "second_per_grid_ts": torch.tensor([0.7], dtype=torch.float64)}
    positions, _ = mrope_positions(config_of("qwen2_5_vl", tokens_per_second=1), exact)
    assert int(positions[0, 11]) - 1 == 7


def test_a_long_video_pushes_the_text_behind_its_time() -> None:
    """An hour in 300 patches of 8x14 tokens, 12 seconds apart, at two positions per second."""
    positions, following = _positions("qwen2_5_vl", [5, Video(300, 8, 14, 12.0), 3])
    assert max(positions[0][:-4]) == 6 + 299 * 24
    assert positions[0][-4:] == positions[1][-4:] == positions[2][-4:] == [7183, 7184, 7185, 7186]
    assert following == 7187


def test_a_short_video_pushes_the_text_behind_its_side() -> None:
    positions, following = _positions("qwen2_5_vl", [Video(2, 3, 5, 0.5), 1])
    assert positions[0][-2:] == [6, 7]
    assert following == 8


def test_qwen3_vl_makes_every_frame_a_block_behind_its_label() -> None:
    """Two label tokens, the start token, 2x1 tokens that take two positions, the end token; and again."""
    expected = [
        [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 9, 11, 12],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 9, 11, 12],
    ]
    assert _positions("qwen3_vl", [Video(2, 2, 1), 1]) == (expected, 13)


def test_several_blocks_with_and_without_text_between() -> None:
    """An image, a video right behind it, text, another video with seconds of its own."""
    expected = [
        [0, 1, 2, 3, 4, 4, 6, 6, 7, 8, 9, 9, 10, 10, 11],
        [0, 1, 2, 3, 4, 5, 4, 5, 7, 8, 9, 9, 9, 9, 11],
        [0, 1, 2, 3, 4, 4, 4, 4, 7, 8, 9, 10, 9, 10, 11],
    ]
    parts: list[int | Image | Video] = [Image(1, 1), Video(2, 2, 1, 1.0), Video(2, 1, 2, 0.5)]
    assert _positions("qwen2_5_vl", parts) == (expected, 12)


def test_blocks_that_touch_are_told_apart_by_their_grids() -> None:
    """Two images without tokens around them: 1x2 and 2x1 in one run of image tokens."""
    inputs = {
        "input_ids": torch.full((1, 4), 13),
        "mm_token_type_ids": torch.ones(1, 4, dtype=torch.long),
        "image_grid_thw": torch.tensor([[1, 2, 4], [1, 4, 2]]),
    }
    positions, following = mrope_positions(config_of("qwen2_vl"), inputs)
    assert positions.tolist() == [[0, 0, 2, 2], [0, 0, 2, 3], [0, 1, 2, 2]]
    assert following == 4


def test_seconds_are_one_where_they_are_missing_and_none_of_qwen2_vls_business() -> None:
    prompt = lay_out("qwen2_5_vl", [Video(3, 1, 1, 2.5)])
    del prompt.inputs["second_per_grid_ts"]
    positions, _ = mrope_positions(config_of("qwen2_5_vl"), prompt.inputs)
    assert positions[0].tolist() == [0, 1, 3, 5, 6]
    with_seconds = {**prompt.inputs, "second_per_grid_ts": torch.tensor([2.5])}
    positions, _ = mrope_positions(config_of("qwen2_vl"), with_seconds)
    assert positions[0].tolist() == [0, 1, 2, 3, 4]


def test_an_empty_prompt_has_no_positions() -> None:
    empty = torch.zeros(1, 0, dtype=torch.long)
    positions, following = mrope_positions(config_of("qwen2_vl"), {"input_ids": empty, "mm_token_type_ids": empty})
    assert (positions.shape, following) == ((3, 0), 0)


def _broken(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    inputs = {**lay_out("qwen2_5_vl", [2, Video(2, 2, 2), 1]).inputs, **changes}
    return {name: value for name, value in inputs.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": torch.zeros(2, 13, dtype=torch.long)}, r"must be of one prompt \[1, L\], got \[2, 13\]"),
        ({"mm_token_type_ids": torch.zeros(1, 3, dtype=torch.long)}, "as long as input_ids, got 3 for 13"),
        ({"video_grid_thw": None, "second_per_grid_ts": None}, "a token of type 2 at place 3 with no grid left"),
        ({"video_grid_thw": torch.tensor([[2, 4, 2]])}, "a token of type 2 at place 7 with no grid left"),
        ({"video_grid_thw": torch.tensor([[2, 4, 6]])}, "must hold 12 visual tokens as its grid says, got 8 of type 2"),
        ({"image_grid_thw": torch.tensor([[1, 2, 2]])}, "every image grid needs its tokens .* got 1 image blocks"),
        ({"second_per_grid_ts": torch.tensor([1.0, 2.0])}, "one value per video, got 2 for 1 videos"),
        ({"second_per_grid_ts": torch.tensor([float("nan")])}, "finite and not negative, got nan"),
        ({"second_per_grid_ts": torch.tensor([-1.0])}, r"finite and not negative, got -1\.0"),
    ],
)
def test_grids_that_do_not_fit_are_refused(changes: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mrope_positions(config_of("qwen2_5_vl"), _broken(**changes))


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of a family among .* got qwen2;"):
        mrope_positions(Qwen2Config(), _broken())
