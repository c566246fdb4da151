"""Annotated questions: `Sample`, and readers of the files in which benchmarks publish them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from zoomzero.annotations import cgbench, lvbench, mlvu, nextgqa, rextime, videomme
from zoomzero.annotations.questions import load_annotations
from zoomzero.annotations.rextime import write_submission
from zoomzero.annotations.rows import BadRow, RowReader
from zoomzero.annotations.sample import Sample
from zoomzero.limits import MAX_BAD_FRACTION

__all__ = ["BENCHMARKS", "BadRow", "Sample", "load_annotations", "load_benchmark", "write_submission"]

_READERS: dict[str, Callable[[Path, str, Path, RowReader], list[Sample]]] = {
    "nextgqa": nextgqa.read,
    "rextime": rextime.read,
    "cgbench": cgbench.read,
    "videomme": videomme.read,
    "mlvu": mlvu.read,
    "lvbench": lvbench.read,
}
BENCHMARKS = tuple(_READERS)

# Folders in which the releases put their videos, the general name first.
VIDEO_FOLDERS = ("videos", "video", "NExTVideo", "cg_videos_720p", "all_videos", "data")


def load_benchmark(
    name: str,
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    video_root: str | os.PathLike[str] | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    strict: bool = False,
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> list[Sample]:
    """Samples of a benchmark from the files its authors publish; docs/evaluating.md describes each.

    Args:
        name: one of `BENCHMARKS`.
        root: folder of the annotation files.
        split: "test", "val" or, for CG-Bench, "mini".
        video_root: folder of the videos; unless told the first of `VIDEO_FOLDERS` that `root` has, else `root`.
        max_bad_fraction: share of the rows that may break a rule; they are left out.
        strict: allow none.
        on_bad_row: called with each row left out; logged as a warning unless told.

    Raises:
        ValueError: unknown name, a file that is not of the benchmark's format, or too many bad rows.
        OSError: a file is missing; the message says where to get it.
    """
    if name not in _READERS:
        raise ValueError(f"load_benchmark: name must be one of {', '.join(BENCHMARKS)}, got {name!r}; choose one")
    folder = Path(root)
    own_format = folder / "annotations.json"
    if name == "nextgqa" and not (folder / f"{split}.csv").exists() and own_format.exists():
        return load_annotations(
            own_format, video_root, max_bad_fraction=max_bad_fraction, strict=strict, on_bad_row=on_bad_row
        )
    reader = RowReader(max_bad_fraction, strict, on_bad_row)
    videos = Path(video_root) if video_root is not None else _video_folder(folder)
    samples = _READERS[name](folder, split, videos, reader)
    reader.finish()
    return samples


def _video_folder(root: Path) -> Path:
    return next((root / name for name in VIDEO_FOLDERS if (root / name).is_dir()), root)
