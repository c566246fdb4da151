"""What an evaluation keeps: its answers in the samples' order, on disk as they come, and its result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from zoomzero.annotations import Sample
from zoomzero.answering.answer import Answer
from zoomzero.answering.engine import Reading
from zoomzero.evaluation.metrics import Prediction, mean, metrics
from zoomzero.skipping import SKIPPED_FILE, SkipLog
from zoomzero.video import VideoError

ANSWERS_FILE = "answers.jsonl"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    answers: one a sample, None where its video could not be read; skipped: (sample index, reason) of those;
    coarse_accuracy: share of samples whose coarse pass answered rightly; metrics: of the final answers, see `metrics`,
    and num_skipped.
    """

    answers: list[Answer | None]
    skipped: list[tuple[int, str]]
    coarse_accuracy: float
    metrics: dict[str, float]


class EvaluationStopped(VideoError):
    """Too many videos are unreadable. answers: those of the samples up to there, None where the video was not read."""

    def __init__(self, path: str, reason: str, answers: Sequence[Answer | None] = ()) -> None:
        super().__init__(path, reason)
        self.answers = list(answers)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A sample whose video was read, or cannot be; is_last: no later sample needs the reading."""

    index: int
    sample: Sample
    reading: Reading | VideoError
    is_last: bool


class Run:
    """Answers of an evaluation in the samples' order, kept on disk as they come where there is a folder."""

    def __init__(self, samples: Sequence[Sample], folder: Path | None, max_skipped_fraction: float) -> None:
        self.samples = samples
        self.answers: list[Answer | None] = []
        self.skipped: list[tuple[int, str]] = []
        self._file = None if folder is None else folder / ANSWERS_FILE
        self._log = SkipLog(None if folder is None else folder / SKIPPED_FILE, len(samples), max_skipped_fraction)

    def add(self, batch: Sequence[Asked], results: Sequence[Answer | VideoError]) -> None:
        """Take the results of the next samples; answers are on disk before a skipped sample can end the run."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as out:
                for item, result in zip(batch, results, strict=True):
                    if not isinstance(result, VideoError):
                        asked = {"index": item.index, "video": item.sample.video, "question": item.sample.question}
                        out.write(json.dumps({**asked, **result.as_dict()}, ensure_ascii=False) + "\n")
        first = len(self.answers)
        self.answers += [None if isinstance(result, VideoError) else result for result in results]
        for index, result in enumerate(results, start=first):
            if isinstance(result, VideoError):
                self.skipped.append((index, str(result)))
                try:
                    self._log.record(f"{index}: {self.samples[index].question}", result)
                except VideoError as stop:
                    raise EvaluationStopped(stop.path, stop.reason, self.answers) from result

    def evaluation(self) -> Evaluation:
        predictions = [None if answer is None else Prediction(answer.letter, answer.spans) for answer in self.answers]
        coarse = [
            answer is not None and answer.passes[0].letter == sample.answer
            for sample, answer in zip(self.samples, self.answers, strict=True)
        ]
        figures = metrics(self.samples, predictions) | {"num_skipped": float(len(self.skipped))}
        return Evaluation(self.answers, self.skipped, mean(coarse), figures)
