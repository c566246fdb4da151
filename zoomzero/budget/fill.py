"""The "fill" policy: the most frames that spend at least nine tenths of the budget, and never more than all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zoomzero import intervals
from zoomzero.budget.plan import FramePlan, Limits, count_candidates
from zoomzero.intervals import Span

# A plan below this share of the budget is taken only where no grid reaches it.
MIN_FILL = 0.9


def fill_plan(
    duration: float,
    source: tuple[int, int],
    sample_fps: float,
    zoom: list[Span] | None,
    context_fraction: float,
    limits: Limits,
) -> FramePlan:
    planned = duration if zoom is None else intervals.total_length(zoom)
    candidates = max(1 if zoom is None else len(zoom), count_candidates(planned, sample_fps))
    context: list[Span] = []
    if zoom is not None and context_fraction:
        context = _complement(zoom, duration)
        if context:
            # Context adds frames next to the spans' own candidates; the budget then thins both alike.
            everywhere = max(candidates, count_candidates(duration, sample_fps))
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


def refit_plan(plan: FramePlan, timestamps: Sequence[float], source: tuple[int, int], limits: Limits) -> FramePlan:
    """The plan with these frames, thinned evenly where the budget demands it, in the size it then allows."""
    num_frames, grid = _fit(len(timestamps), source, limits)
    return FramePlan(
        timestamps=tuple(timestamps[i * len(timestamps) // num_frames] for i in range(num_frames)),
        size=(grid[0] * limits.cell, grid[1] * limits.cell),
        num_tokens=limits.patches(num_frames) * grid[0] * grid[1],
        sample_fps=plan.sample_fps * num_frames / len(plan.timestamps),
    )


def _fit(candidates: int, source: tuple[int, int], limits: Limits) -> tuple[int, tuple[int, int]]:
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


def _grids(source: tuple[int, int], limits: Limits) -> list[tuple[int, int]]:
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


def _complement(zoom: list[Span], duration: float) -> list[Span]:
    edges = [0.0, *(edge for span in zoom for edge in span), duration]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]


def _spread(spans: list[Span], count: int) -> list[float]:
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
