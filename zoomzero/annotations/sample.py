"""One annotated question, whatever file it comes from."""

from __future__ import annotations

import dataclasses

from zoomzero.intervals import Span
from zoomzero.prompts import OPTION_LETTERS

# Between the names of a question that belongs to several tasks (LVBench).
TASK_SEPARATOR = " | "


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question with its truth.

    Attributes:
        video: path of the video.
        question: what is asked.
        options: bare option texts, in the order of their letters; empty where only the evidence is asked for.
        answer: letter of the right option; "" where the benchmark keeps it secret.
        spans: true spans in seconds; empty where the benchmark has none.
        duration: seconds of the video as annotated; None where the file does not say.
        question_id: names the question within its benchmark; "" where the file has no such name.
        task: what kind of question it is; several joined by TASK_SEPARATOR.
        duration_class: "short", "medium" or "long" where the benchmark sorts videos so.
        category: what kind of video it is.
        subtitles: path of the video's .srt file, None without one.
    """

    video: str
    question: str
    options: tuple[str, ...]
    answer: str
    spans: tuple[Span, ...]
    duration: float | None
    question_id: str = ""
    task: str = ""
    duration_class: str = ""
    category: str = ""
    subtitles: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks one by one."""
        return tuple(self.task.split(TASK_SEPARATOR)) if self.task else ()

    def is_right(self, letter: str | None) -> bool:
        """Whether a letter names the right option, or one with the very same text (published files have such)."""
        texts = dict(zip(OPTION_LETTERS, self.options, strict=False))
        return letter in texts and self.answer in texts and texts[letter] == texts[self.answer]
