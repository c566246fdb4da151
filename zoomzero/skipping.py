"""Samples whose video cannot be read: left out of their batch, written down once, and an end when they are too many."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomzero.looks.encoder import PreparedPrompt
from zoomzero.video import VideoError
from zoomzero.video.prefetch import SKIPPED_FILE, SkipLog

Row = Mapping[str, Any]


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
