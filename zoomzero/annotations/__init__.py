"""Annotated questions: `Sample`, and readers of the files in which benchmarks publish them."""

from __future__ import annotations

from pathlib import Path

from zoomzero.annotations.nextgqa import load_annotations
from zoomzero.annotations.sample import Sample

__all__ = ["BENCHMARKS", "Sample", "load_annotations", "load_benchmark"]

BENCHMARKS = ("nextgqa",)


def load_benchmark(name: str, root: str | Path) -> list[Sample]:
    """Samples of a published benchmark from its folder.

    Args:
        name: "nextgqa": a NExT-GQA-style annotations.json with the videos beside it.
        root: the benchmark's folder.

    Raises:
        ValueError: unknown name, or a file that is not such a benchmark.
        OSError: a file is missing.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"load_benchmark: name must be one of {', '.join(BENCHMARKS)}, got {name!r}; choose one")
    return load_annotations(Path(root) / "annotations.json")
