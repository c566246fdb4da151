"""The "paper" policy: Zoom-Zero's own rule, kept for parity. It sizes frames by pixels and may miss the budget."""

from __future__ import annotations

import math

from zoomzero.budget.plan import FramePlan, Limits, count_candidates
from zoomzero.intervals import Span

# Zoom-Zero thins the frames inside the spans to this many.
PAPER_MAX_ZOOM_FRAMES = 256
# Zoom-Zero keeps frames five per cent above the smallest size when it thins.
PAPER_MIN_PIXELS_MARGIN = 1.05


def paper_plan(
    duration: float, height: int, width: int, sample_fps: float, zoom: list[Span] | None, limits: Limits
) -> FramePlan:
    num_candidates = max(1, count_candidates(duration, sample_fps))
    candidates = list(range(num_candidates))
    max_frames = limits.max_frames
    if zoom is not None:
        wanted: set[int] = set()
        for start, end in zoom:
            first = min(math.floor(start * sample_fps), num_candidates - 1)
            wanted.update(range(first, min(max(math.ceil(end * sample_fps), first + 1), num_candidates)))
        candidates = sorted(wanted)
        max_frames = min(max_frames, PAPER_MAX_ZOOM_FRAMES)
    area = limits.cell * limits.cell
    min_pixels = int(PAPER_MIN_PIXELS_MARGIN * limits.min_frame_tokens * area)
    total_pixels = limits.budget_tokens * area
    affordable = int(
        limits.temporal_patch_size * total_pixels / (PAPER_MIN_PIXELS_MARGIN * limits.min_frame_tokens * area)
    )
    kept = _linspace(candidates, max(1, min(max_frames, affordable)))
    affordable_pixels = limits.temporal_patch_size * total_pixels / len(kept)
    max_pixels = max(min(limits.max_frame_tokens * area, affordable_pixels), min_pixels)
    size = _paper_size(height, width, limits.cell, limits.min_frame_tokens * area, max_pixels)
    return FramePlan(
        timestamps=tuple(index / sample_fps for index in kept),
        size=size,
        num_tokens=limits.patches(len(kept)) * (size[0] // limits.cell) * (size[1] // limits.cell),
        sample_fps=len(kept) / len(candidates) * sample_fps,
    )


def _linspace(candidates: list[int], count: int) -> list[int]:
    if count >= len(candidates):
        return candidates
    if count == 1:
        return candidates[:1]
    last = len(candidates) - 1
    return [candidates[round(i * last / (count - 1))] for i in range(count)]


def _paper_size(height: int, width: int, cell: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """Sides rounded to cells; shrunk or enlarged keeping the aspect ratio when the rounded area leaves the limits."""
    rounded = max(cell, round(height / cell) * cell), max(cell, round(width / cell) * cell)
    if rounded[0] * rounded[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return (
            max(cell, math.floor(height / shrink / cell) * cell),
            max(cell, math.floor(width / shrink / cell) * cell),
        )
    if rounded[0] * rounded[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / cell) * cell, math.ceil(width * grow / cell) * cell
    return rounded
