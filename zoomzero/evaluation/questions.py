"""The questions of a run with their truth, beside its answers: what a report shows without the annotation files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from zoomzero.annotations import Sample
from zoomzero.evaluation.records import question_keys
from zoomzero.files import write_whole

QUESTIONS_FILE = "questions.jsonl"


def write_questions(folder: str | os.PathLike[str], samples: Sequence[Sample]) -> None:
    """Write questions.jsonl into a run's folder: the key of each question, as in answers.jsonl, and its sample.

    Raises:
        OSError: it cannot be written.
    """
    rows = [
        {"key": key, **dataclasses.asdict(sample)} for key, sample in zip(question_keys(samples), samples, strict=True)
    ]
    write_whole(Path(folder, QUESTIONS_FILE), "".join(json.dumps(row) + "\n" for row in rows))


def read_questions(folder: str | os.PathLike[str]) -> dict[str, Sample]:
    """The questions of a run by their keys, in their order.

    Raises:
        ValueError: the file is not there or is something else; names it and says what to do.
    """
    file = Path(folder, QUESTIONS_FILE)
    remedy = "run `zoomzero eval` with the same arguments and --run once more, which keeps the answers and writes it"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {str(row.pop("key")): _sample(row) for row in rows}
    except OSError as error:
        raise ValueError(f"{file}: must hold the run's questions, got {error.strerror}; {remedy}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: must hold the run's questions, got {error}; {remedy}") from error


def _sample(row: dict) -> Sample:
    spans = tuple((float(start), float(end)) for start, end in row.pop("spans"))
    return Sample(**row | {"options": tuple(str(text) for text in row["options"]), "spans": spans})
