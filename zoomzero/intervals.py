"""Arithmetic on time spans: unions and the overlap measures that rewards and metrics stand on.

A span is a pair (start, end) in seconds with start <= end. A span with start == end is a point: it has no length, so it
adds nothing to an intersection over union, but it can lie inside another span, and that is what `iop` and `iog` say
of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Span = tuple[float, float]


def _checked(spans: Iterable[Sequence[float]], op: str) -> list[Span]:
    checked: list[Span] = []
    for span in spans:
        if isinstance(span, str) or (not isinstance(span, Sequence) and not hasattr(span, "__len__")):
            raise TypeError(f"{op}: a span must be a pair (start, end), got {span!r}; pass a list of pairs of seconds")
        if len(span) != 2:
            raise ValueError(
                f"{op}: a span must be a pair (start, end), got {span!r}; drop the extra or missing numbers"
            )
        start, end = float(span[0]), float(span[1])
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"{op}: span ends must be finite, got ({start}, {end}); clip the spans to the video")
        if start > end:
            raise ValueError(f"{op}: a span must not end before it starts, got ({start}, {end}); swap or drop it")
        checked.append((start, end))
    return checked


def merge(spans: Iterable[Sequence[float]]) -> list[Span]:
    """Union of spans as disjoint spans in rising order; spans that touch become one.

    Args:
        spans: pairs (start, end) in seconds, any order, overlaps allowed.

    Returns:
        Disjoint pairs (start, end), sorted.

    Raises:
        ValueError: a span is not a pair, is not finite, or ends before it starts.
        TypeError: a span is not a sequence.
    """
    merged: list[Span] = []
    for start, end in sorted(_checked(spans, "merge")):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def total_length(spans: Iterable[Sequence[float]]) -> float:
    """Length in seconds of the union of spans."""
    return sum(end - start for start, end in merge(spans))


def clip(spans: Iterable[Sequence[float]], low: float, high: float) -> list[Span]:
    """Union of spans cut to [low, high] in seconds; what lies outside is dropped, so the result may be empty."""
    return [(max(start, low), min(end, high)) for start, end in merge(spans) if start <= high and end >= low]


def inside_video(spans: Iterable[Sequence[float]], duration: float, start: float = 0.0) -> list[Span]:
    """Union of spans cut to what a video shows, [start, duration): the one rule for rewards, zooming and metrics.

    The last instant is excluded: no frame is shown at `duration`. Empty if no span touches the video.

    Args:
        spans: pairs of seconds.
        duration: where the video, or the part of it that counts, ends.
        start: where it begins.
    """
    return [span for span in clip(spans, start, duration) if span[0] < duration]


def intersection(a: Iterable[Sequence[float]], b: Iterable[Sequence[float]]) -> float:
    """Length in seconds of the overlap between the union of `a` and the union of `b`."""
    left, right = merge(a), merge(b)
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return total


def iou(pred: Iterable[Sequence[float]], true: Iterable[Sequence[float]]) -> float:
    """Intersection over union of the unions of predicted and true spans (Zoom-Zero's temporal reward).

    Args:
        pred: predicted spans, pairs of seconds.
        true: true spans, pairs of seconds.

    Returns:
        A number in [0, 1]; 0 when either side is empty or has no length.
    """
    left, right = merge(pred), merge(true)
    overlap = intersection(left, right)
    union = total_length(left) + total_length(right) - overlap
    return overlap / union if union > 0 else 0.0


def _share_inside(inner: list[Span], outer: list[Span]) -> float:
    if not inner or not outer:
        return 0.0
    length = total_length(inner)
    if length > 0:
        return min(1.0, intersection(inner, outer) / length)
    covered = sum(any(start <= point <= end for start, end in outer) for point, _ in inner)
    return covered / len(inner)


def iop(pred: Iterable[Sequence[float]], true: Iterable[Sequence[float]]) -> float:
    """Share of the predicted time that is true: intersection over prediction.

    A prediction made of points only scores the share of its points that lie inside true spans, as NExT-GQA's official
    script does for one point. 0 when either side is empty.
    """
    return _share_inside(merge(pred), merge(true))


def iog(pred: Iterable[Sequence[float]], true: Iterable[Sequence[float]]) -> float:
    """Share of the true time that is predicted: intersection over ground truth. 0 when either side is empty.

    Predicting the whole video scores 1, so never report it alone.
    """
    return _share_inside(merge(true), merge(pred))
