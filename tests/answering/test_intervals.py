"""Spans: golden cases, algebra, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.places import GOLDEN

from zoomzero import intervals

# Hundredths of a second, as the golden cases have; zero-length spans included.
SPAN = st.tuples(st.integers(0, 12000), st.integers(0, 2500)).map(lambda p: (p[0] / 100, (p[0] + p[1]) / 100))
SPANS = st.lists(SPAN, max_size=6)


@pytest.mark.parametrize("case", GOLDEN["interval"])
def test_golden(case: dict[str, Any]) -> None:
    assert intervals.merge(case["pred"]) == [tuple(span) for span in case["merged_pred"]]
    assert intervals.iou(case["pred"], case["gt"]) == pytest.approx(case["iou"], abs=1e-12)
    assert intervals.iog(case["pred"], case["gt"]) == pytest.approx(case["iog"], abs=1e-12)


@given(SPANS, SPANS)
def test_measures_are_shares_and_agree_with_a_fine_grid(pred: list[intervals.Span], true: list[intervals.Span]) -> None:
    def cells(spans: list[intervals.Span]) -> set[int]:
        return {cell for start, end in spans for cell in range(round(start * 100), round(end * 100))}

    p, t = cells(pred), cells(true)
    assert intervals.iou(pred, true) == pytest.approx(len(p & t) / len(p | t) if p | t else 0.0, abs=1e-9)
    if p and true:
        assert intervals.iop(pred, true) == pytest.approx(len(p & t) / len(p), abs=1e-9)
    if t and pred:
        assert intervals.iog(pred, true) == pytest.approx(len(p & t) / len(t), abs=1e-9)
    assert intervals.iou(pred, true) == pytest.approx(intervals.iou(true, pred), abs=1e-12)


@given(SPANS)
def test_merge_is_sorted_disjoint_and_idempotent(spans: list[intervals.Span]) -> None:
    merged = intervals.merge(spans)
    assert merged == intervals.merge(merged)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))


def test_touching_spans_become_one() -> None:
    assert intervals.merge([(2, 3), (1, 2)]) == [(1.0, 3.0)]


def test_point_prediction_has_iop_one_inside_and_zero_outside() -> None:
    assert intervals.iop([(7, 7)], [(5, 10)]) == 1.0
    assert intervals.iou([(7, 7)], [(5, 10)]) == 0.0
    assert intervals.iop([(7, 7), (11, 11)], [(5, 10)]) == 0.5
    assert intervals.iou([(7, 7)], [(7, 7)]) == 0.0


def test_clip_drops_what_lies_outside() -> None:
    assert intervals.clip([(-3, 2), (4, 5), (30, 50), (60, 70)], 0, 32) == [(0, 2), (4, 5), (30, 32)]


def test_intersection_and_total_length() -> None:
    assert intervals.intersection([(0, 4), (6, 9)], [(3, 7)]) == 2.0
    assert intervals.total_length([(0, 4), (2, 6)]) == 6.0


@pytest.mark.parametrize(
    ("spans", "error", "match"),
    [
        ([(5, 2)], ValueError, "must not end before it starts, got \\(5.0, 2.0\\)"),
        ([(0, math.inf)], ValueError, "must be finite"),
        ([(0, math.nan)], ValueError, "must be finite"),
        ([(1, 2, 3)], ValueError, "must be a pair"),
        (["12"], TypeError, "must be a pair"),
        ([3.0], TypeError, "must be a pair"),
    ],
)
def test_errors(spans: Any, error: type[Exception], match: str) -> None:
    for function in (intervals.merge, lambda s: intervals.iou(s, [(0, 1)]), lambda s: intervals.iop([(0, 1)], s)):
        with pytest.raises(error, match=match):
            function(spans)


def test_what_a_video_shows_of_spans() -> None:
    assert intervals.inside_video([(3, 5), (4, 8), (-2, 1), (30, 99)], 32) == [(0, 1), (3, 8), (30, 32)]
    assert intervals.inside_video([(40, 50), (32, 32), (-5, -1)], 32) == []
    assert intervals.inside_video([(7, 7), (31, 40)], 32, start=7) == [(7, 7), (31, 32)]
