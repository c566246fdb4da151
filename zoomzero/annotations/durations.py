"""Annotated lengths against the files': evidence counted from another cut of a video would be measured wrongly."""

from __future__ import annotations

import dataclasses
import logging

logger = logging.getLogger("zoomzero.annotations")

# Published lengths are often rounded to a second.
DURATION_TOLERANCE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class WrongDuration:
    """A video whose annotated length is not the file's."""

    video: str
    """Path of the video."""
    annotated: float
    """Seconds that the annotations say."""
    found: float
    """Seconds that the file has."""


class DurationCheck:
    """Compares each video once, and reports those that are off by more than `DURATION_TOLERANCE_SECONDS`."""

    def __init__(self) -> None:
        self.wrong: dict[str, WrongDuration] = {}
        self._seen: set[str] = set()

    def compare(self, video: str, annotated: float | None, found: float) -> None:
        """Log a warning the first time that a video's length is not as annotated; None says nothing."""
        if annotated is None or video in self._seen:
            return
        self._seen.add(video)
        if abs(annotated - found) > DURATION_TOLERANCE_SECONDS:
            self.wrong[video] = WrongDuration(video, annotated, found)
            logger.warning("%s: annotated as %.1f s, the file has %.1f s", video, annotated, found)
