"""Frame plans: the authors' rule case by case, and the properties of ours."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.places import GOLDEN

from zoomzero import intervals
from zoomzero.budget import FALLBACK_FRAMES, plan_frames, refit_frames

CELL = 28


@pytest.mark.parametrize("case", GOLDEN["resize_plan"])
def test_paper_policy_matches_the_authors(case: dict[str, Any]) -> None:
    plan = plan_frames(
        case["num_frames"] / case["sample_fps"],
        case["height"],
        case["width"],
        budget_tokens=case["total_pixels"] // CELL**2,
        sample_fps=case["sample_fps"],
        max_frames=case["num_frames"],
        min_frame_tokens=case["min_pixels"] // CELL**2,
        policy="paper",
    )
    indices = [round(t * case["sample_fps"]) for t in plan.timestamps]
    assert len(indices) == case["out_frames"]
    assert indices[:8] == case["first_indices"]
    assert indices[-1] == case["last_index"]
    assert plan.size == (case["out_height"], case["out_width"])
    assert plan.sample_fps == pytest.approx(case["out_fps"], rel=1e-12)
    assert plan.num_tokens == math.ceil(len(indices) / 2) * plan.size[0] * plan.size[1] // CELL**2


def test_paper_zoom_takes_the_frames_from_floor_to_ceil() -> None:
    plan = plan_frames(100, 360, 640, budget_tokens=4096, spans=[(20.3, 22.1), (50, 51)], policy="paper")
    assert plan.timestamps == (20.0, 20.5, 21.0, 21.5, 22.0, 50.0, 50.5)
    assert plan.sample_fps == 2.0


def test_paper_zoom_keeps_at_most_256_frames() -> None:
    plan = plan_frames(400, 360, 640, budget_tokens=4096, spans=[(0, 400)], policy="paper")
    assert len(plan.timestamps) == 256


@pytest.mark.parametrize("policy", ["fill", "paper"])
def test_a_duration_that_is_frames_over_rate_keeps_every_frame(policy: str) -> None:
    for rate in (0.3, 0.7, 1.1, 1.7, 2.3, 29.97):
        for num_frames in (3, 7, 49, 101, 187):
            plan = plan_frames(num_frames / rate, 64, 64, budget_tokens=4096, sample_fps=rate, policy=policy)
            assert len(plan.timestamps) == num_frames


# The tiny model of the demo: 32 s of 64 x 64, one cell = 16 pixels, 32 tokens in both passes.
TINY: dict[str, Any] = {"budget_tokens": 32, "min_frame_tokens": 1, "patch_size": 8, "merge_size": 2}


def test_tiny_coarse_pass() -> None:
    plan = plan_frames(32, 64, 64, **TINY)
    assert (len(plan.timestamps), plan.size, plan.num_tokens, plan.sample_fps) == (64, (16, 16), 32, 2.0)
    assert plan.timestamps == tuple(i / 2 for i in range(64))


def test_tiny_zoom_pass() -> None:
    plan = plan_frames(32, 64, 64, spans=[(10, 15)], max_frames=4, **TINY)
    assert (plan.size, plan.num_tokens, plan.sample_fps) == ((64, 64), 32, 0.8)
    assert plan.timestamps == (10.625, 11.875, 13.125, 14.375)


def test_empty_spans_fall_back_to_twenty_frames_of_the_whole_video() -> None:
    for policy in ("fill", "paper"):
        plan = plan_frames(300, 720, 1280, budget_tokens=4096, spans=[], policy=policy)
        assert len(plan.timestamps) == FALLBACK_FRAMES
        assert plan.timestamps[0] == 0
        assert plan.timestamps[-1] >= 280


SOURCES = st.sampled_from([(720, 1280), (1280, 720), (1080, 1920), (480, 480), (480, 854), (540, 1280), (1080, 2520)])


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    # Budgets and geometry as models use them; durations from a few frames to hours.
    height, width = draw(SOURCES)
    patch_size, merge_size = draw(st.sampled_from([(14, 2), (16, 2), (8, 2), (14, 1)]))
    return {
        "duration": draw(st.floats(0.2, 7200)),
        "height": height,
        "width": width,
        "budget_tokens": draw(st.integers(64, 16384)),
        "sample_fps": draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])),
        "max_frames": draw(st.integers(1, 1024)),
        "min_frame_tokens": draw(st.integers(1, 16)),
        "max_frame_tokens": draw(st.integers(64, 1024)),
        "patch_size": patch_size,
        "merge_size": merge_size,
        "temporal_patch_size": draw(st.sampled_from([1, 2, 4])),
    }


def check_plan(request: dict[str, Any]) -> Any:
    plan = plan_frames(**request)
    cell = request["patch_size"] * request["merge_size"]
    rows, columns = plan.size[0] // cell, plan.size[1] // cell
    height, width = request["height"], request["width"]
    patches = math.ceil(len(plan.timestamps) / request["temporal_patch_size"])
    assert (rows * cell, columns * cell) == plan.size
    assert plan.num_tokens == patches * rows * columns
    assert plan.num_tokens <= request["budget_tokens"]
    assert 1 <= len(plan.timestamps) <= request["max_frames"]
    assert request["min_frame_tokens"] <= rows * columns <= request["max_frame_tokens"]
    assert abs(rows - columns * height / width) <= 1 + 1e-9
    assert abs(columns - rows * width / height) <= 1 + 1e-9
    assert list(plan.timestamps) == sorted(plan.timestamps)
    assert all(0 <= t < request["duration"] for t in plan.timestamps)
    assert plan.sample_fps > 0
    return plan


@given(requests())
def test_fill_keeps_every_limit(request: dict[str, Any]) -> None:
    plan = check_plan(request)
    assert len(plan.timestamps) <= max(1, math.floor(request["duration"] * request["sample_fps"] + 1e-9))


@given(requests())
def test_fill_wastes_less_than_a_tenth_where_source_and_limits_allow(request: dict[str, Any]) -> None:
    # Enough candidates and a budget fine enough that quantisation is no excuse: 30 s, 512 tokens, 16 frames.
    request["duration"] = max(request["duration"], 30.0)
    request["budget_tokens"] = max(request["budget_tokens"], 512)
    request["max_frames"] = max(request["max_frames"], 16)
    plan = check_plan(request)
    cell = request["patch_size"] * request["merge_size"]
    native = math.ceil(request["height"] / cell) * math.ceil(request["width"] / cell)
    largest = min(native, request["max_frame_tokens"])
    tp = request["temporal_patch_size"]
    most = min(request["max_frames"], math.floor(request["duration"] * request["sample_fps"]))
    # Spare room of one and a half covers the step from a grid to the next at a fixed aspect ratio.
    assume(math.ceil(most / tp) * largest >= 1.5 * request["budget_tokens"])
    assume(request["budget_tokens"] / math.ceil(most / tp) >= 4 or request["min_frame_tokens"] <= 4)
    assert plan.num_tokens > 0.9 * request["budget_tokens"]


@st.composite
def spans_in(draw: st.DrawFn, duration: float) -> list[tuple[float, float]]:
    starts = draw(st.lists(st.floats(0, 0.95), min_size=1, max_size=5))
    return [(s * duration, min(duration, s * duration + draw(st.floats(0.001, 0.3)) * duration)) for s in starts]


@given(st.data(), requests(), st.sampled_from([0.0, 0.25, 0.5]))
def test_zoom_frames_lie_in_the_spans_in_proportion(
    data: st.DataObject, request: dict[str, Any], context: float
) -> None:
    request["spans"] = data.draw(spans_in(request["duration"]))
    request["context_fraction"] = context
    plan = check_plan(request)
    merged = intervals.clip(request["spans"], 0, request["duration"])
    inside = [t for t in plan.timestamps if any(s <= t <= e for s, e in merged)]
    outside = len(plan.timestamps) - len(inside)
    assert len(inside) >= 1
    assert outside <= context * len(plan.timestamps) + 0.5
    if context == 0 and len(inside) >= len(merged):
        total = intervals.total_length(merged)
        for start, end in merged:
            count = sum(start <= t <= end for t in inside)
            share = len(inside) * (end - start) / total
            # Each span has at least one frame, which the longer ones give up.
            assert count <= max(1, math.ceil(share + 1e-9))
            assert count >= 1
            assert count >= math.floor(share + 1e-9) - len(merged)


def test_context_frames_come_from_the_rest() -> None:
    plan = plan_frames(100, 720, 1280, budget_tokens=4096, spans=[(40, 60)], context_fraction=0.2, max_frames=20)
    inside = [t for t in plan.timestamps if 40 <= t <= 60]
    assert len(inside) == 16
    assert len(plan.timestamps) == 20
    assert min(plan.timestamps) < 40
    assert max(plan.timestamps) > 60


def test_context_is_dropped_when_the_spans_cover_the_video() -> None:
    plan = plan_frames(10, 720, 1280, budget_tokens=4096, spans=[(0, 10)], context_fraction=0.5)
    assert len(plan.timestamps) == 20


def test_small_source_is_not_enlarged_beyond_its_size() -> None:
    plan = plan_frames(2, 120, 160, budget_tokens=8192)
    assert plan.size == (140, 168)


def test_tiny_source_is_enlarged_to_the_smallest_frame() -> None:
    plan = plan_frames(2, 56, 56, budget_tokens=8192)
    assert plan.size == (112, 112)


def test_very_elongated_source_gets_the_nearest_shape() -> None:
    plan = plan_frames(10, 8, 20000, budget_tokens=4096)
    assert plan.size[0] == CELL
    assert plan.num_tokens <= 4096


def test_budget_too_small_for_all_candidates_thins_evenly() -> None:
    plan = plan_frames(600, 720, 1280, budget_tokens=320)
    steps = [b - a for a, b in zip(plan.timestamps, plan.timestamps[1:], strict=False)]
    assert len(plan.timestamps) <= 40
    assert max(steps) - min(steps) <= 0.5 + 1e-9
    assert plan.sample_fps == pytest.approx(len(plan.timestamps) / 600)


GOOD: dict[str, Any] = {"duration": 32.0, "height": 64, "width": 64, "budget_tokens": 64}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"duration": 0.0}, "duration must be a finite positive number, got 0.0"),
        ({"duration": math.inf}, "duration must be a finite positive number, got inf"),
        ({"sample_fps": math.nan}, "sample_fps must be a finite positive number"),
        ({"height": 0}, "height and width must be at least 1 pixel, got 0 x 64"),
        ({"budget_tokens": 0}, "budget_tokens must be at least 1, got 0"),
        ({"max_frames": 0}, "max_frames must be at least 1"),
        ({"patch_size": 0}, "patch_size must be at least 1"),
        ({"temporal_patch_size": 0}, "temporal_patch_size must be at least 1"),
        ({"budget_tokens": 8}, "must hold one temporal patch of min_frame_tokens, got 8 < 16"),
        ({"max_frame_tokens": 4}, "max_frame_tokens must be at least min_frame_tokens, got 4 < 16"),
        ({"spans": [(40, 50)]}, r"spans must touch the video \[0, 32\), got \[\(40, 50\)\]"),
        ({"spans": [(5, 2)]}, "must not end before it starts"),
        ({"context_fraction": 1.0, "spans": [(1, 2)]}, r"context_fraction must be in \[0, 1\), got 1.0"),
        ({"context_fraction": 0.5}, "context_fraction needs spans"),
        ({"context_fraction": 0.5, "spans": [(1, 2)], "policy": "paper"}, "'paper' has no context frames"),
        ({"policy": "half"}, "policy must be 'fill' or 'paper', got 'half'"),
    ],
)
def test_errors(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan_frames(**{**GOOD, **change})


def test_moved_frames_are_fitted_to_the_budget_again() -> None:
    limits = {"budget_tokens": 8192, "max_frames": 768}
    plan = plan_frames(3600, 720, 1280, sample_fps=2.0, **limits)
    refitted = refit_frames(plan, [10.0 * i for i in range(100)], 720, 1280, **limits)
    assert refitted.timestamps == tuple(10.0 * i for i in range(100))
    assert refitted.size[0] > plan.size[0]
    assert 0.9 * 8192 <= refitted.num_tokens <= 8192
    assert refitted.sample_fps == pytest.approx(plan.sample_fps * 100 / len(plan.timestamps))
    assert refit_frames(plan, plan.timestamps, 720, 1280, **limits) == plan
    for timestamps in ([], [0.0] * (len(plan.timestamps) + 1)):
        with pytest.raises(ValueError, match=f"there must be 1 to {len(plan.timestamps)} timestamps"):
            refit_frames(plan, timestamps, 720, 1280, **limits)
