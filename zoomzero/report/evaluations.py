"""An evaluation's folder as it lies on disk, whole or still being written: its questions, answers and settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.evaluation.questions import read_questions
from zoomzero.evaluation.records import AnswerRecord
from zoomzero.evaluation.run_folder import ANSWERS_FILE, SETTINGS_FILE


@dataclasses.dataclass(frozen=True)
class SeenPass:
    """What a pass of an answer saw and cost, beside its `PassRecord`."""

    why: str
    """Why the strategy made it."""
    words: str | None
    """The answer to an open question."""
    spans: tuple[tuple[float, float], ...]
    """Spans that the response names."""
    timestamps: tuple[float, ...]
    """Seconds of the frames; empty for answers of releases that did not write them."""
    num_frames: int
    """Frames seen."""
    size: tuple[int, int]
    """(height, width) of every frame."""
    cost: Mapping[str, float]
    """visual_tokens, text_tokens, seconds, flops."""


@dataclasses.dataclass(frozen=True)
class KeptAnswer:
    """One answer of a run."""

    record: AnswerRecord
    """As evaluation reads it."""
    text: str | None
    """The answer in words."""
    seen: tuple[SeenPass, ...]
    """One per pass."""


@dataclasses.dataclass(frozen=True)
class EvaluationRun:
    """One evaluation."""

    name: str
    """How the page calls it."""
    settings: Mapping[str, Any]
    """What the answers depend on."""
    samples: Mapping[str, Sample]
    """Questions by their keys, in their order."""
    answers: Mapping[str, KeptAnswer]
    """By the keys of the questions; those not answered are not there."""

    def records(self) -> list[AnswerRecord | None]:
        """One per question, in their order."""
        kept = [self.answers.get(key) for key in self.samples]
        return [None if answer is None else answer.record for answer in kept]


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds answers of an evaluation."""
    return (folder / ANSWERS_FILE).is_file()


def read_evaluation(folder: Path, name: str) -> EvaluationRun:
    """Read a run's folder; lines of answers that are cut or foreign are left out, as a resumed run would.

    Raises:
        ValueError: the questions or settings are not there.
    """
    samples = read_questions(folder)
    file = folder / SETTINGS_FILE
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: must be the settings of a run, got {error}; name the folder of a run") from error
    answers: dict[str, KeptAnswer] = {}
    for line in (folder / ANSWERS_FILE).read_bytes().split(b"\n"):
        try:
            data = json.loads(line)
            answers.setdefault(str(data["key"]), _kept(data))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return EvaluationRun(name, settings, samples, {key: answers[key] for key in samples if key in answers})


def _kept(data: Mapping[str, Any]) -> KeptAnswer:
    return KeptAnswer(AnswerRecord.from_dict(data), _text(data.get("text")), tuple(map(_seen, data["passes"])))


def _seen(data: Mapping[str, Any]) -> SeenPass:
    height, width = data.get("size", (0, 0))
    times = tuple(float(time) for time in data.get("timestamps", ()))
    return SeenPass(
        why=str(data.get("why", "")),
        words=_text(data.get("words")),
        spans=tuple((float(start), float(end)) for start, end in data.get("spans", ())),
        timestamps=times,
        num_frames=int(data.get("num_frames", len(times))),
        size=(int(height), int(width)),
        cost={str(name): float(value) for name, value in data.get("cost", {}).items()},
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
