"""Annotated questions: `Sample`, and readers of the files in which benchmarks publish them."""

from zoomzero.annotations.nextgqa import Sample, load_annotations

__all__ = ["Sample", "load_annotations"]
