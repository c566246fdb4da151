"""How many frames, where, and at which size, so that a video fits a budget of visual tokens.

One visual token covers a cell of `patch_size * merge_size` pixels a side, and `temporal_patch_size` frames share a
temporal patch, so a plan of n frames of H x W pixels costs

    num_tokens = ceil(n / temporal_patch_size) * (H / cell) * (W / cell).

Two policies:

- "paper": the rule of Zoom-Zero (arXiv 2512.14273), kept for parity. It sizes frames by pixels and rounds afterwards,
  so it can miss the budget on either side.
- "fill" (default): searches the few grids of cells that keep the aspect ratio and takes the one that keeps most frames
  while using at least nine tenths of the budget. It never exceeds the budget.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Required, TypedDict, Unpack

from zoomzero import intervals
from zoomzero.budget.fill import fill_plan, refit_plan
from zoomzero.budget.paper import paper_plan
from zoomzero.budget.plan import (
    MAX_FRAME_TOKENS,
    MAX_FRAMES,
    MERGE_SIZE,
    MIN_FRAME_TOKENS,
    PATCH_SIZE,
    SAMPLE_FPS,
    TEMPORAL_PATCH_SIZE,
    FramePlan,
    Limits,
)

__all__ = ["FALLBACK_FRAMES", "FramePlan", "plan_frames", "refit_frames"]

# Frames that stand for a whole video when a response named no span (Zoom-Zero falls back to about twenty).
FALLBACK_FRAMES = 20


def plan_frames(
    duration: float,
    height: int,
    width: int,
    *,
    budget_tokens: int,
    sample_fps: float = SAMPLE_FPS,
    spans: Sequence[Sequence[float]] | None = None,
    context_fraction: float = 0.0,
    max_frames: int = MAX_FRAMES,
    min_frame_tokens: int = MIN_FRAME_TOKENS,
    max_frame_tokens: int = MAX_FRAME_TOKENS,
    patch_size: int = PATCH_SIZE,
    merge_size: int = MERGE_SIZE,
    temporal_patch_size: int = TEMPORAL_PATCH_SIZE,
    policy: str = "fill",
) -> FramePlan:
    """Choose the frames and the size that spend a budget of visual tokens on a video or on spans of it.

    Candidates are floor(duration * sample_fps) evenly spaced frames (inside the spans if given), thinned evenly where
    `max_frames` or the budget at `min_frame_tokens` per frame demands it. Frames then get the largest size the
    budget, the source and `max_frame_tokens` allow.

    Args:
        duration: length of the video in seconds.
        height, width: pixels of the source as shown (after rotation).
        budget_tokens: most visual tokens the plan may cost ("fill") or the authors' total_pixels / cell^2 ("paper").
        sample_fps: candidate frames per second.
        spans: pairs of seconds to zoom into; they are merged and cut to the video. None plans the whole video. An empty
            list (a response without a valid span) plans about twenty frames of the whole video, as Zoom-Zero does.
        context_fraction: share of the frames, in [0, 1), spread over the rest of the video outside the spans.
        max_frames: most frames of the plan.
        min_frame_tokens, max_frame_tokens: cells that a frame may have. A source too small for the minimum is enlarged.
        patch_size, merge_size, temporal_patch_size: geometry of the vision tower.
        policy: "fill" never exceeds the budget and wastes less than a tenth of it where source and limits allow;
            "paper" reproduces the authors' rule.

    Returns:
        FramePlan; see there for units.

    Raises:
        ValueError: an argument out of range, or spans that lie outside the video.
    """
    _check(duration, height, width, sample_fps, context_fraction, policy)
    limits = Limits(
        budget_tokens, max_frames, min_frame_tokens, max_frame_tokens, patch_size * merge_size, temporal_patch_size
    )
    _check_limits(limits, patch_size, merge_size)
    zoom: list[intervals.Span] | None = None
    if spans is not None and len(spans) == 0:
        limits = dataclasses.replace(limits, max_frames=min(max_frames, FALLBACK_FRAMES))
    elif spans is not None:
        zoom = _clip_to_video(spans, duration)
    if context_fraction and zoom is None:
        raise ValueError(
            f"plan_frames: context_fraction needs spans to zoom into, got {context_fraction} without "
            "spans; pass spans or leave it 0"
        )
    if policy == "paper":
        if context_fraction:
            raise ValueError(
                f"plan_frames: policy 'paper' has no context frames, got context_fraction="
                f"{context_fraction}; use policy 'fill'"
            )
        return paper_plan(duration, height, width, sample_fps, zoom, limits)
    return fill_plan(duration, (height, width), sample_fps, zoom, context_fraction, limits)


def refit_frames(
    plan: FramePlan,
    timestamps: Sequence[float],
    height: int,
    width: int,
    **limits: Unpack[PlanLimits],
) -> FramePlan:
    """A plan whose frames were moved, as `Video.snapped_to_keyframes` does, fitted to the budget again.

    Args:
        plan: of `plan_frames`, with the same limits.
        timestamps: seconds, rising; at least one, and no more than the plan has.
        height, width: pixels of the source as shown.
        limits: budget_tokens, max_frames, min_frame_tokens, max_frame_tokens, patch_size, merge_size and
            temporal_patch_size as for `plan_frames`.

    Returns:
        FramePlan at these times; fewer frames may be larger, and its frames per second of planned time are fewer.

    Raises:
        ValueError: no time, or more of them than the plan has.
    """
    if not 1 <= len(timestamps) <= len(plan.timestamps):
        raise ValueError(
            f"refit_frames: there must be 1 to {len(plan.timestamps)} timestamps, as many as the plan has, got "
            f"{len(timestamps)}; plan anew"
        )
    return refit_plan(plan, list(timestamps), (height, width), _limits(**limits))


class PlanLimits(TypedDict, total=False):
    """Arguments of `plan_frames` of the same names."""

    budget_tokens: Required[int]
    max_frames: int
    min_frame_tokens: int
    max_frame_tokens: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int


def _limits(
    *,
    budget_tokens: int,
    max_frames: int = MAX_FRAMES,
    min_frame_tokens: int = MIN_FRAME_TOKENS,
    max_frame_tokens: int = MAX_FRAME_TOKENS,
    patch_size: int = PATCH_SIZE,
    merge_size: int = MERGE_SIZE,
    temporal_patch_size: int = TEMPORAL_PATCH_SIZE,
) -> Limits:
    limits = Limits(
        budget_tokens, max_frames, min_frame_tokens, max_frame_tokens, patch_size * merge_size, temporal_patch_size
    )
    _check_limits(limits, patch_size, merge_size)
    return limits


def _check(duration: float, height: int, width: int, sample_fps: float, context_fraction: float, policy: str) -> None:
    for name, value in (("duration", duration), ("sample_fps", sample_fps)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"plan_frames: {name} must be a finite positive number, got {value}; read it from the video"
            )
    if height < 1 or width < 1:
        raise ValueError(
            f"plan_frames: height and width must be at least 1 pixel, got {height} x {width}; read them from the video"
        )
    if not 0 <= context_fraction < 1:
        raise ValueError(f"plan_frames: context_fraction must be in [0, 1), got {context_fraction}; 0 is a pure zoom")
    if policy not in ("fill", "paper"):
        raise ValueError(f"plan_frames: policy must be 'fill' or 'paper', got {policy!r}; 'fill' keeps to the budget")


def _check_limits(limits: Limits, patch_size: int, merge_size: int) -> None:
    for name, value in (
        ("budget_tokens", limits.budget_tokens),
        ("max_frames", limits.max_frames),
        ("min_frame_tokens", limits.min_frame_tokens),
        ("patch_size", patch_size),
        ("merge_size", merge_size),
        ("temporal_patch_size", limits.temporal_patch_size),
    ):
        if value < 1:
            raise ValueError(f"plan_frames: {name} must be at least 1, got {value}; pass a positive whole number")
    if limits.max_frame_tokens < limits.min_frame_tokens:
        raise ValueError(
            f"plan_frames: max_frame_tokens must be at least min_frame_tokens, got "
            f"{limits.max_frame_tokens} < {limits.min_frame_tokens}; raise the first or lower the second"
        )
    if limits.budget_tokens < limits.min_frame_tokens:
        raise ValueError(
            f"plan_frames: budget_tokens must hold one temporal patch of min_frame_tokens, got "
            f"{limits.budget_tokens} < {limits.min_frame_tokens}; raise the budget or lower "
            "min_frame_tokens"
        )


def _clip_to_video(spans: Sequence[Sequence[float]], duration: float) -> list[intervals.Span]:
    inside = intervals.inside_video(spans, duration)
    if not inside:
        raise ValueError(
            f"plan_frames: spans must touch the video [0, {duration:g}), got {list(spans)!r}; "
            "clip or drop them, or pass [] to look at the whole video"
        )
    return inside
