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

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zoomzero import intervals

# Frames that stand for a whole video when a response named no span (Zoom-Zero falls back to about twenty).
FALLBACK_FRAMES = 20
# Zoom-Zero thins the frames inside the spans to this many ("paper" policy only).
PAPER_MAX_ZOOM_FRAMES = 256
# A "fill" plan below this share of the budget is taken only where no grid reaches it.
MIN_FILL = 0.9
# Zoom-Zero keeps frames five per cent above the smallest size when it thins.
PAPER_MIN_PIXELS_MARGIN = 1.05


@dataclass(frozen=True)
class FramePlan:
    """What to decode and how large to make it.

    Attributes:
        timestamps: seconds from the first frame, rising, each in [0, duration).
        size: (height, width) in pixels of every frame, multiples of patch_size * merge_size.
        num_tokens: visual tokens the plan costs.
        sample_fps: frames per second of planned time (for temporal position ids). Planned time is the spans' length for
            a zoom plan, else the video's duration.
    """

    timestamps: tuple[float, ...]
    size: tuple[int, int]
    num_tokens: int
    sample_fps: float


@dataclass(frozen=True)
class _Limits:
    budget_tokens: int
    max_frames: int
    min_frame_tokens: int
    max_frame_tokens: int
    cell: int
    temporal_patch_size: int

    def patches(self, num_frames: int) -> int:
        return -(-num_frames // self.temporal_patch_size)


def plan_frames(
    duration: float,
    height: int,
    width: int,
    *,
    budget_tokens: int,
    sample_fps: float = 2.0,
    spans: Sequence[Sequence[float]] | None = None,
    context_fraction: float = 0.0,
    max_frames: int = 768,
    min_frame_tokens: int = 16,
    max_frame_tokens: int = 768,
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    policy: str = "fill",
) -> FramePlan:
    """Choose the frames and the size that spend a budget of visual tokens on a video or on spans of it.

    Candidates are floor(duration * sample_fps) evenly spaced frames (inside the spans if given), thinned evenly where
    `max_frames` or the budget at `min_frame_tokens` a frame demands it. Frames then get the largest size the
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
        min_frame_tokens, max_frame_tokens: cells a frame may have. A source too small for the minimum is enlarged.
        patch_size, merge_size, temporal_patch_size: geometry of the vision tower.
        policy: "fill" never exceeds the budget and wastes less than a tenth of it where source and limits allow;
            "paper" reproduces the authors' rule.

    Returns:
        FramePlan; see there for units.

    Raises:
        ValueError: an argument out of range, or spans that lie outside the video.
    """
    _check(duration, height, width, sample_fps, context_fraction, policy)
    limits = _Limits(
        budget_tokens, max_frames, min_frame_tokens, max_frame_tokens, patch_size * merge_size, temporal_patch_size
    )
    _check_limits(limits, patch_size, merge_size)
    zoom: list[intervals.Span] | None = None
    if spans is not None and len(spans) == 0:
        limits = _Limits(**{**limits.__dict__, "max_frames": min(max_frames, FALLBACK_FRAMES)})
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
        return _paper_plan(duration, height, width, sample_fps, zoom, limits)
    return _fill_plan(duration, (height, width), sample_fps, zoom, context_fraction, limits)


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


def _check_limits(limits: _Limits, patch_size: int, merge_size: int) -> None:
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


def _num_candidates(seconds: float, sample_fps: float) -> int:
    """floor(seconds * sample_fps), where a duration computed as frames / rate must not lose a frame to rounding."""
    return math.floor(seconds * sample_fps + 1e-9)


def _clip_to_video(spans: Sequence[Sequence[float]], duration: float) -> list[intervals.Span]:
    # The last instant is excluded: no frame is shown at `duration`.
    inside = [(start, end) for start, end in intervals.clip(spans, 0.0, duration) if start < duration]
    if not inside:
        raise ValueError(
            f"plan_frames: spans must touch the video [0, {duration:g}), got {list(spans)!r}; "
            "clip or drop them, or pass [] to look at the whole video"
        )
    return inside


# -- policy "paper" ------------------------------------------------------------------------------------------------


def _paper_plan(
    duration: float, height: int, width: int, sample_fps: float, zoom: list[intervals.Span] | None, limits: _Limits
) -> FramePlan:
    num_candidates = max(1, _num_candidates(duration, sample_fps))
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


# -- policy "fill" -------------------------------------------------------------------------------------------------


def _fill_plan(
    duration: float,
    source: tuple[int, int],
    sample_fps: float,
    zoom: list[intervals.Span] | None,
    context_fraction: float,
    limits: _Limits,
) -> FramePlan:
    planned = duration if zoom is None else intervals.total_length(zoom)
    candidates = max(1 if zoom is None else len(zoom), _num_candidates(planned, sample_fps))
    context: list[intervals.Span] = []
    if zoom is not None and context_fraction:
        context = _complement(zoom, duration)
        if context:
            # Context adds frames next to the spans' own candidates; the budget then thins both alike.
            everywhere = max(candidates, _num_candidates(duration, sample_fps))
            candidates = min(math.ceil(candidates / (1 - context_fraction)), everywhere)
    num_frames, grid = _fit(candidates, source, limits)
    if zoom is None:
        timestamps = [index * candidates // num_frames / sample_fps for index in range(num_frames)]
    else:
        num_context = min(round(context_fraction * num_frames), num_frames - 1) if context else 0
        timestamps = sorted(_spread(zoom, num_frames - num_context) + _spread(context, num_context))
    if zoom is None:
        rate = sample_fps * num_frames / candidates
    else:
        covered = duration if context else planned
        rate = num_frames / covered if covered > 0 else sample_fps
    # Rounding can carry a time at the very end of the video onto `duration`, where no frame is shown.
    last = math.nextafter(duration, 0.0)
    return FramePlan(
        timestamps=tuple(min(t, last) for t in timestamps),
        size=(grid[0] * limits.cell, grid[1] * limits.cell),
        num_tokens=limits.patches(num_frames) * grid[0] * grid[1],
        sample_fps=rate,
    )


def _fit(candidates: int, source: tuple[int, int], limits: _Limits) -> tuple[int, tuple[int, int]]:
    """Number of frames and grid of cells: most frames among the grids that fill the budget, else the best filled."""
    most = min(candidates, limits.max_frames)
    best: tuple[tuple[bool, float, float], int, tuple[int, int]] = ((False, -1.0, 0.0), 0, (1, 1))
    for rows, columns in _grids(source, limits):
        cells = rows * columns
        num_frames = min(most, limits.budget_tokens // cells * limits.temporal_patch_size)
        fill = limits.patches(num_frames) * cells / limits.budget_tokens
        filled = fill >= MIN_FILL
        # Among filling grids more frames win, then the better fill; otherwise the better fill, then more frames.
        score = (filled, num_frames, fill) if filled else (filled, fill, num_frames)
        if score > best[0]:
            best = (score, num_frames, (rows, columns))
    return best[1], best[2]


def _grids(source: tuple[int, int], limits: _Limits) -> list[tuple[int, int]]:
    """Grids (rows, columns) within one cell of the source's aspect ratio, within the limits, not above native size.

    A source whose native grid has fewer than `min_frame_tokens` cells is enlarged to the smallest grid that has them.
    """
    short, long = sorted(source)
    ratio = long / short
    most_cells = min(limits.max_frame_tokens, limits.budget_tokens)
    native = -(-short // limits.cell), -(-long // limits.cell)
    within: list[tuple[int, int]] = []
    enlarged: list[tuple[int, int]] = []
    for a in range(1, math.isqrt(most_cells) + 2):
        for b in range(max(a, math.ceil(a * ratio - 1)), math.floor(a * ratio + 1) + 1):
            if not limits.min_frame_tokens <= a * b <= most_cells or abs(a - b / ratio) > 1:
                continue
            (within if a <= native[0] and b <= native[1] else enlarged).append((a, b))
    if not within and enlarged:
        # Nearest in shape first among equally small, so that a tie does not distort the picture.
        within = [min(enlarged, key=lambda grid: (grid[0] * grid[1], abs(grid[0] * ratio - grid[1])))]
    if not within:
        within = [_nearest_shape(ratio, limits.min_frame_tokens, most_cells)]
    return within if source[0] <= source[1] else [(b, a) for a, b in within]


def _nearest_shape(ratio: float, least: int, most: int) -> tuple[int, int]:
    """The grid nearest in shape when limits are so narrow, or the source so elongated, that none is within a cell."""
    shapes = []
    for a in range(1, math.isqrt(most) + 1):
        b = max(-(-least // a), min(most // a, round(a * ratio)))
        if a <= b and a * b <= most:
            shapes.append((a, b))
    if not shapes:
        raise ValueError(
            f"plan_frames: no grid of cells has {least} to {most} tokens; widen min_frame_tokens, "
            "max_frame_tokens or budget_tokens"
        )
    return min(shapes, key=lambda grid: abs(math.log(grid[1] / grid[0] / ratio)))


def _complement(zoom: list[intervals.Span], duration: float) -> list[intervals.Span]:
    edges = [0.0, *(edge for span in zoom for edge in span), duration]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]


def _spread(spans: list[intervals.Span], count: int) -> list[float]:
    """`count` times inside the spans, in proportion to their lengths, in the middle of equal shares of each span.

    Every span gets a frame while there are enough of them; then the longest go first.
    """
    if count == 0:
        return []
    lengths = [end - start for start, end in spans]
    if count < len(spans):
        longest = sorted(range(len(spans)), key=lambda i: -lengths[i])[:count]
        spans, lengths = [spans[i] for i in sorted(longest)], [lengths[i] for i in sorted(longest)]
    shares = _apportion(lengths, count)
    return [
        start + (k + 0.5) * (end - start) / share
        for (start, end), share in zip(spans, shares, strict=True)
        for k in range(share)
    ]


def _apportion(lengths: list[float], count: int) -> list[int]:
    """Whole shares of `count`, at least one each, otherwise by largest remainder in proportion to the lengths."""
    total = sum(lengths)
    exact = [count / len(lengths)] * len(lengths) if total <= 0 else [count * length / total for length in lengths]
    shares = [max(1, math.floor(value)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in range(count - sum(shares)):
        shares[by_remainder[i % len(shares)]] += 1
    while sum(shares) > count:
        most = max((i for i in range(len(shares)) if shares[i] > 1), key=lambda i: shares[i] - exact[i])
        shares[most] -= 1
    return shares
