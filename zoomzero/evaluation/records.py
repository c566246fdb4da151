"""What an evaluation keeps of each answer, and its result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.annotations.durations import WrongDuration
from zoomzero.evaluation.metrics import Prediction
from zoomzero.intervals import Span
from zoomzero.lenient import read_spans
from zoomzero.video import VideoError


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """One pass of an answer, as it is written down."""

    name: str
    """"coarse", "zoom" or "chunk"."""
    text: str
    """What the model wrote."""
    letter: str | None
    """The letter it gave, None without one."""
    confidence: float
    """Probability of the letter."""
    num_tokens: int
    """Visual tokens it saw."""
    looked_at: tuple[Span, ...]
    """Spans whose frames were seen; empty for the whole video."""


@dataclasses.dataclass(frozen=True)
class AnswerRecord:
    """An answer as it is written down; fresh ones and those read back are the same."""

    letter: str | None
    """The option letter; None if no pass gave one."""
    spans: tuple[Span, ...]
    """Evidence in seconds, merged, in order of time."""
    confidence: float
    """Of the pass that the answer comes from."""
    passes: tuple[PassRecord, ...]
    """All passes, in order."""
    timings: dict[str, float]
    """Seconds by step."""
    cost: dict[str, float]
    """What all passes cost together: visual_tokens, text_tokens, seconds, flops."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> AnswerRecord:
        """From what `Answer.as_dict` gives, or from a line that holds it.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        passes = tuple(
            PassRecord(
                name=str(look["name"]),
                text=str(look["text"]),
                letter=_letter(look["letter"]),
                confidence=float(look["confidence"]),
                num_tokens=int(look["num_tokens"]),
                looked_at=_spans(look["looked_at"]),
            )
            for look in data["passes"]
        )
        numbers = {
            part: {str(name): float(value) for name, value in data[part].items()} for part in ("timings", "cost")
        }
        return AnswerRecord(
            _letter(data["letter"]), _spans(data["spans"]), float(data["confidence"]), passes, **numbers
        )

    @property
    def prediction(self) -> Prediction:
        """What is measured by the union of spans."""
        return Prediction(self.letter, self.spans)

    @property
    def official_prediction(self) -> Prediction:
        """What is measured by one span: the one that the response names first, before its others."""
        named = next((spans for look in self.passes if (spans := read_spans(look.text))), [])
        first = [
            (max(start, low), min(end, high))
            for start, end in named
            for low, high in self.spans
            if start <= high and end >= low
        ]
        return Prediction(self.letter, (first[0], *self.spans) if first else self.spans)


def _letter(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a letter must be a string or null, got {value!r:.80}; answer the question again")
    return value


def _spans(value: Any) -> tuple[Span, ...]:
    return tuple((float(start), float(end)) for start, end in value)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`."""

    answers: list[AnswerRecord | None]
    """One per sample, None where its video could not be read."""
    skipped: list[tuple[int, str]]
    """(sample index, reason) of those."""
    coarse_accuracy: float
    """Share of samples whose coarse pass answered rightly."""
    metrics: dict[str, float]
    """Of the final answers, see `zoomzero.evaluation.metrics`, and num_skipped."""
    num_resumed: int = 0
    """Answers that lay in the run's folder already."""
    num_set_aside: int = 0
    """Lines of the folder's answers that were cut or foreign and have been answered again."""
    wrong_durations: tuple[WrongDuration, ...] = ()
    """Videos whose annotated length is off by more than a second."""
    waited_seconds: float = 0.0
    """Time in which the model had nothing to do because frames were still being read, those of later passes too."""

    @property
    def predictions(self) -> list[Prediction | None]:
        """One per sample, None without an answer."""
        return [None if answer is None else answer.prediction for answer in self.answers]

    @property
    def official_predictions(self) -> list[Prediction | None]:
        """As `predictions`, the span named first in front."""
        return [None if answer is None else answer.official_prediction for answer in self.answers]


class EvaluationStopped(VideoError):
    """Too many videos are unreadable. answers: those of the samples up to there, None where the video was not read."""

    def __init__(self, path: str, reason: str, answers: Sequence[AnswerRecord | None] = ()) -> None:
        super().__init__(path, reason)
        self.answers = list(answers)


def question_keys(samples: Sequence[Sample]) -> list[str]:
    """A name for each question that stays the same when files move or other questions are left out.

    Questions that are equal in all get different names, in their order.
    """
    seen: Counter[str] = Counter()
    keys = []
    for sample in samples:
        parts = (sample.question_id, Path(sample.video).name, sample.question, *sample.options)
        digest = hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()[:20]
        seen[digest] += 1
        keys.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return keys
