"""Where training rows come from: the user's own file, or any benchmark's files, each with its share."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoomzero.annotations import BENCHMARKS, Sample, load_annotations, load_benchmark

ROWS = "rows"


@dataclass(frozen=True)
class DataSource:
    """One source of training rows."""

    root: str
    """File of the rows, or folder of the benchmark's files."""
    format: str = ROWS
    """"rows" (NExT-GQA-style JSON or JSON Lines) or the name of a benchmark."""
    split: str = "val"
    """Of the benchmark."""
    share: float = 1.0
    """Share of its rows that is used, drawn by the seed; 2 takes every row twice."""
    video_root: str | None = None
    """Folder of the videos, where it is not where the format has it."""

    def __post_init__(self) -> None:
        if self.format != ROWS and self.format not in BENCHMARKS:
            raise ValueError(
                f"data: format must be one of {', '.join((ROWS, *BENCHMARKS))}, got {self.format!r:.80}; choose one"
            )
        is_number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not is_number or not 0 < self.share <= 100:
            raise ValueError(f"data: share must be above 0 and at most 100, got {self.share!r:.80}; 1 takes every row")

    @staticmethod
    def of(told: Any) -> DataSource:
        """From what a recipe says of it: a mapping of the fields, or the file of rows alone.

        Raises:
            ValueError: it has another form.
        """
        if isinstance(told, DataSource):
            return told
        if isinstance(told, str):
            return DataSource(told)
        names = [field.name for field in dataclasses.fields(DataSource)]
        if not isinstance(told, Mapping) or "root" not in told or not set(told) <= set(names):
            raise ValueError(f"data: a source must be a mapping of {', '.join(names)}, with a root, got {told!r:.200}")
        return DataSource(**told)

    def load(self, seed: int, **limits: Any) -> list[Sample]:
        """Its share of the rows; limits as in `load_annotations`.

        Raises:
            ValueError, OSError: as `load_annotations` and `load_benchmark`.
        """
        if self.format == ROWS:
            samples = load_annotations(self.root, self.video_root, **limits)
        else:
            samples = load_benchmark(self.format, self.root, self.split, video_root=self.video_root, **limits)
        whole, part = divmod(round(self.share * len(samples)), len(samples)) if samples else (0, 0)
        drawn = random.Random(f"{seed}/{self.format}/{self.root}/{self.split}").sample(range(len(samples)), part)
        return samples * whole + [samples[index] for index in sorted(drawn)]


def load_sources(sources: Sequence[DataSource], seed: int, **limits: Any) -> list[Sample]:
    """The rows of all sources, one source after another (the trainer shuffles them).

    Raises:
        ValueError: there is no source, or no row.
    """
    samples = [sample for source in sources for sample in source.load(seed, **limits)]
    if not samples:
        raise ValueError(f"data: a run needs rows, got none from {len(sources)} sources; add one, or raise its share")
    return samples
