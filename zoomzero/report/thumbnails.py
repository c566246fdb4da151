"""Which passes get thumbnails, under a bound of bytes: what is worth looking at first, each video opened once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoomzero.report.frames import sheet, shown_times
from zoomzero.video import VideoError, open_video

# Questions with these flags get their frames first.
PRIORITY = ("broken", "rescued", "wrong", "missed", "right")


class Sheets:
    """Sheets of thumbnails as they are made.

    Args:
        max_bytes: of all sheets together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.sheets: list[dict[str, Any]] = []
        self.num_questions = 0
        self.note = ""
        self._bytes_left = max_bytes

    def read(
        self,
        questions: Sequence[tuple[dict[str, Any], str]],
        time_limit: float | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make the sheets of all passes, and write their places into the passes' "sheet".

        questions: as in Note [The page's data], each with the path of its video. Those whose video is gone have none.
        time_limit, on_progress: as `read_report`.
        """
        by_video: dict[str, list[dict[str, Any]]] = {}
        for question, path in sorted(questions, key=lambda pair: _rank(pair[0])):
            by_video.setdefault(path, []).append(question)
        num_unreadable = 0
        for done, (path, group) in enumerate(by_video.items(), start=1):
            try:
                self._read_video(path, group, time_limit)
            except VideoError:
                num_unreadable += 1
            if on_progress is not None:
                on_progress(done, len(by_video))
            if self._bytes_left <= 0:
                self.note = "The page is full: the other questions are without frames."
                break
        if num_unreadable:
            self.note = f"{self.note} {num_unreadable} of {len(by_video)} videos could not be read.".strip()

    def _read_video(self, path: str, questions: Sequence[dict[str, Any]], time_limit: float | None) -> None:
        places: dict[tuple[Any, ...], int] = {}
        with open_video(path, time_limit=time_limit) as video:
            for question in questions:
                if self._bytes_left <= 0:
                    return
                passes = [look for answer in question["answers"] if answer for look in answer.get("passes", ())]
                for look in passes:
                    times, size = _times(look), (look["size"][0], look["size"][1])
                    if not times or min(size) < 1:
                        continue
                    if (times, size) not in places:
                        made = sheet(video, times, size)
                        self._bytes_left -= len(made["url"])
                        places[times, size] = len(self.sheets)
                        self.sheets.append(made)
                    look["sheet"] = places[times, size]
                self.num_questions += any(look["sheet"] is not None for look in passes)


def _times(look: Mapping[str, Any]) -> tuple[float, ...]:
    times = [first + step * place for first, step, count in look["frames"] for place in range(int(count))]
    return shown_times(times, (look["size"][0], look["size"][1]))


def _rank(question: Mapping[str, Any]) -> int:
    found = {flag for answer in question["answers"] if answer for flag in answer["flags"]}
    return next((place for place, flag in enumerate(PRIORITY) if flag in found), len(PRIORITY))
