"""Samples whose video cannot be read: left out of their batch, written down once, and an end when they are too many."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomzero.limits import MAX_SKIPPED_FRACTION
from zoomzero.video import VideoError

if TYPE_CHECKING:
    from zoomzero.looks import PreparedPrompt

# Name of a run's list of skipped samples, in the run's folder.
SKIPPED_FILE = "skipped.jsonl"

Row = Mapping[str, Any]

# A name that is not UTF-8 is written as JSON's escape, which reads back as it was.
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}


class SkipLog:
    """Samples skipped for an unreadable video: one JSON line each, and an end when there are too many.

    A sample that comes again (in the next epoch) is neither written nor counted again.

    Args:
        file: where the lines go, e.g. runs/.../skipped.jsonl; appended to, made with its folder at the first line. None
            only counts.
        num_samples: samples of the run.
        max_skipped_fraction: share of them that may be skipped.
    """

    def __init__(
        self, file: str | os.PathLike[str] | None, num_samples: int, max_skipped_fraction: float = MAX_SKIPPED_FRACTION
    ) -> None:
        check_skipped_fraction("SkipLog", max_skipped_fraction)
        self.file = None if file is None else Path(file)
        self.num_samples = num_samples
        self.max_skipped_fraction = max_skipped_fraction
        # Reason by sample and path, in the order of the file's lines.
        self._seen: dict[tuple[str, str], str] = {}

    @property
    def num_skipped(self) -> int:
        """Distinct samples skipped so far."""
        return len(self._seen)

    def record(self, sample: str, error: VideoError) -> None:
        """Write down that `sample` (what tells it from the others on its video) is skipped.

        Raises:
            VideoError: more samples are skipped than allowed; names the file of this one and where the others stand.
        """
        if (sample, error.path) in self._seen:
            return
        self._seen[sample, error.path] = error.reason
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", **_TEXT) as out:
                out.write(_line(sample, error.path, error.reason))
        self._check_limit(error.path, error.reason, error)

    def _check_limit(self, path: str, reason: str, cause: VideoError | None = None) -> None:
        if self.num_skipped > self.max_skipped_fraction * self.num_samples:
            place = "" if self.file is None else f"; see {self.file}"
            raise VideoError(
                path,
                f"{reason}; {self.num_skipped} of {self.num_samples} samples have no readable video, more than "
                f"max_skipped_fraction={self.max_skipped_fraction} allows{place}",
            ) from cause

    def state(self) -> list[list[str]]:
        """Sample, path and reason of each skipped sample, for a checkpoint."""
        return [[sample, path, reason] for (sample, path), reason in self._seen.items()]

    def take_in(self, state: Sequence[Sequence[str]]) -> None:
        """Count what another process has skipped and written down; raises as `record`."""
        for sample, path, reason in state:
            if (sample, path) not in self._seen:
                self._seen[sample, path] = reason
                self._check_limit(path, reason)

    def restore(self, state: Sequence[Sequence[str]], *, write: bool) -> None:
        """Go on from a checkpoint's state; write: take the lines that were written after it out of the file."""
        self._seen = {(sample, path): reason for sample, path, reason in state}
        if not write or self.file is None or not (self._seen or self.file.exists()):
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        written = self.file.with_name(self.file.name + ".new")
        written.write_text("".join(_line(*entry) for entry in self.state()), **_TEXT)
        written.replace(self.file)


def _line(sample: str, path: str, reason: str) -> str:
    return json.dumps({"sample": sample, "path": path, "reason": reason}, ensure_ascii=False) + "\n"


def check_skipped_fraction(where: str, fraction: float) -> None:
    """ValueError unless the share of samples that may be skipped is in [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"{where}: max_skipped_fraction must be in [0, 1], got {fraction}; {MAX_SKIPPED_FRACTION} is usual"
        )


class Skipping:
    """The skipped samples of a run, those of training and of evaluation counted apart, in <folder>/skipped.jsonl.

    Args:
        folder: of the run's outputs.
        num_train, num_eval: rows of the two datasets.
        max_skipped_fraction: share of either that may be skipped.
    """

    def __init__(self, folder: str, num_train: int, num_eval: int, max_skipped_fraction: float) -> None:
        self._file = Path(folder, SKIPPED_FILE)
        self._fraction = max_skipped_fraction
        self._logs = {
            training: SkipLog(self._file, num_samples, max_skipped_fraction)
            for training, num_samples in ((True, num_train), (False, num_eval))
        }

    def evaluate_others(self, num_samples: int) -> None:
        """Count the next evaluation's samples, which are not those of the run's own dataset, from nought."""
        self._logs[False] = SkipLog(self._file, num_samples, self._fraction)

    def state(self, *, training: bool) -> list[list[str]]:
        """Sample, path and reason of each skipped sample, for a checkpoint and for the other processes."""
        return self._logs[training].state()

    def take_in(self, state: Sequence[Sequence[str]], *, training: bool) -> None:
        """Count what another process has skipped; VideoError if that is too much."""
        self._logs[training].take_in(state)

    def restore(self, state: Sequence[Sequence[str]], *, write: bool) -> None:
        """Go on from a checkpoint's state of training; write: in the file too, as one process of all does."""
        self._logs[True].restore(state, write=write)

    def num_skipped(self, *, training: bool) -> int:
        """Distinct samples skipped so far."""
        return self._logs[training].num_skipped

    def readable(
        self, rows: Sequence[Row], prompts: Sequence[PreparedPrompt | VideoError], *, training: bool
    ) -> tuple[list[Row], list[PreparedPrompt]]:
        """The rows whose video can be read, with their prompts; the others are recorded.

        Raises:
            VideoError: too many samples are unreadable.
        """
        kept: list[tuple[Row, PreparedPrompt]] = []
        for row, prompt in zip(rows, prompts, strict=True):
            if isinstance(prompt, VideoError):
                self._logs[training].record(f"{row['question']} ({'; '.join(row['options'])})", prompt)
            else:
                kept.append((row, prompt))
        return [row for row, _ in kept], [prompt for _, prompt in kept]
