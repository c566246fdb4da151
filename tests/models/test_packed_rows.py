"""Common prefixes are found, none is missed, and packed rows hold every token once."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoomzero.models.packed_rows import (
    Group,
    Row,
    find_groups,
    lay_out,
    packed_positions,
    packed_tokens,
    packed_visuals,
)
from zoomzero.models.packed_visuals import Visual


def common(rows: list[list[int]]) -> int:
    """The truth: how many first tokens all rows share."""
    return next(
        (place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows))
    )


def saved(rows: list[Row], groups: list[Group]) -> int:
    return sum((len(group.rows) - 1) * group.prefix for group in groups)


def most_saved(rows: list[list[int]]) -> int:
    """By trying all ways to cut the sorted rows into runs."""
    best = 0
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), len(rows)]
        runs = [sorted(rows)[start:end] for start, end in itertools.pairwise(edges)]
        best = max(best, sum((len(run) - 1) * common(run) for run in runs))
    return best


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(TOKENS, min_size=1, max_size=5))
def test_the_best_groups_are_found(rows: list[list[int]]) -> None:
    groups = find_groups([Row(ids) for ids in rows])
    assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
    for group in groups:
        assert group.prefix == common([rows[row] for row in group.rows])
    assert saved([Row(ids) for ids in rows], groups) == most_saved(rows)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(TOKENS, min_size=1, max_size=6))
def test_every_token_keeps_its_id_and_position(rows: list[list[int]]) -> None:
    held = [Row(ids) for ids in rows]
    layout = lay_out(held, find_groups(held))
    ids = packed_tokens(layout, [torch.tensor(row) for row in rows]).flatten()
    # rows count from different numbers, as left padding makes them; distances within a row stay
    positions = packed_positions(layout, [torch.arange(len(row))[None] + 7 * n for n, row in enumerate(rows)])[
        0
    ].flatten()
    for row, places in zip(rows, layout.places, strict=True):
        assert ids[places].tolist() == row
        assert (positions[places].diff() == 1).all()
    total = sum(len(row) for row in rows)
    assert len(ids) == layout.num_tokens == total - saved(held, layout.groups)


def test_mixed_groups_are_told_apart() -> None:
    """Three prompts behind one system prompt, one with a single answer: what most of them share is not the most."""
    prompts = [[5, 5, 5, *[number] * 40] for number in range(3)]
    rows = [Row([*prompts[number], answer]) for number, answer in [(2, 1), (0, 1), (1, 1), (0, 2), (1, 1), (0, 1)]]
    assert find_groups(rows) == [Group([0], 44), Group([1, 3, 5], 43), Group([2, 4], 44)]


def visual(shade: float, start: int = 1, end: int = 5) -> Visual:
    return Visual("image", start, end, torch.tensor([[1, 4, 4]]), torch.full((16, 3), shade))


def test_rows_with_other_pixels_are_another_group() -> None:
    """Two questions of the same words about two images, their answers mixed."""
    ids = [7, 9, 9, 9, 9, 8]
    rows = [Row([*ids, answer], [visual(shade)]) for answer, shade in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 1.0)]]
    assert find_groups(rows) == [Group([0, 2], 6), Group([1, 3], 6)]
    layout = lay_out(rows, find_groups(rows))
    assert [float(each.pixels[0, 0]) for each in packed_visuals(layout, rows)] == [0.0, 1.0]


def test_a_prefix_never_ends_inside_a_visual() -> None:
    """Qwen3-VL writes the time between the frames of a video: the same pixels at other times are not shared."""
    rows = [Row([7, 9, 9, time, 9, 9, 8], [visual(0.0, end=6)]) for time in (3, 4)]
    assert find_groups(rows) == [Group([0, 1], 1)]
    assert len(packed_visuals(lay_out(rows, find_groups(rows)), rows)) == 2


def test_a_visual_in_a_branch_follows_its_prefix() -> None:
    """A tool's answer may show an image: only one of the rows has it."""
    rows = [Row([7, 8, 1]), Row([7, 8, 9, 9, 9, 9], [visual(0.5, 2, 6)])]
    layout = lay_out(rows, find_groups(rows))
    assert layout.groups == [Group([0, 1], 2)]
    assert len(packed_visuals(layout, rows)) == 1


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"kind": "video"}, False), ({"grid": torch.tensor([[1, 2, 8]])}, False),
     ({"pixels": torch.ones(16, 3)}, False), ({"seconds": torch.tensor([0.5])}, False)],
)  # fmt: skip
def test_what_makes_two_visuals_the_same(change: dict[str, object], same: bool) -> None:
    values = {"kind": "image", "start": 1, "end": 5, "grid": torch.tensor([[1, 4, 4]]), "pixels": torch.zeros(16, 3)}
    assert Visual(**{**values, **change}).same(visual(0.0)) is same  # type: ignore[arg-type]
