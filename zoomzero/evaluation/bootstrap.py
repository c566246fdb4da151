"""Confidence intervals of means by resampling questions: the percentile bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NUM_RESAMPLES = 2000
# Values drawn at a time: bounds the memory of a benchmark with many questions.
_CHUNK_VALUES = 1 << 22


def mean_intervals(
    columns: Mapping[str, Sequence[float]], *, level: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Interval of the mean of each column, whose rows are questions.

    All columns are resampled together, so that their intervals belong to the same draws; the same seed gives the same
    intervals.

    Args:
        columns: per-question values by the name of their mean, of equal lengths.
        level: share of the resampled means inside the interval.
        num_resamples: resampled means.
        seed: of the draws.

    Returns:
        (low, high) by name; without any question there is none.

    Raises:
        ValueError: an argument out of range, or columns of different lengths.
    """
    if not 0 < level < 1:
        raise ValueError(f"mean_intervals: level must be in (0, 1), got {level}; 0.95 is usual")
    if num_resamples < 1:
        raise ValueError(f"mean_intervals: num_resamples must be at least 1, got {num_resamples}; 2000 is usual")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"mean_intervals: columns must have one length, got {sorted(lengths)}; pass one value per row")
    if not columns or lengths == {0}:
        return {}
    values = np.array(list(columns.values()), dtype=np.float64)
    num_rows = values.shape[1]
    draws = np.random.default_rng(seed)
    means = np.empty((num_resamples, len(values)))
    step = max(1, _CHUNK_VALUES // num_rows)
    for start in range(0, num_resamples, step):
        count = min(step, num_resamples - start)
        # How often each row is drawn says all about a resample's mean, for every column at once.
        drawn = draws.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=count)
        means[start : start + count] = drawn @ values.T / num_rows
    tail = (1 - level) / 2
    low, high = np.quantile(means, (tail, 1 - tail), axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(columns, low, high, strict=True)}
