"""Reading annotation files in the NExT-GQA style: a JSON list of grounded multiple-choice questions."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoomzero.annotations.sample import Sample
from zoomzero.prompts import OPTION_LETTERS

# Far above any published annotation file, and small enough to parse in memory.
MAX_FILE_BYTES = 1 << 30

_LABELLED = re.compile(r"\(([A-F])\)\s*(.*)", re.DOTALL)


def load_annotations(path: str | os.PathLike[str], video_root: str | os.PathLike[str] | None = None) -> list[Sample]:
    """Read a JSON list of {video, question, options: ["(A) ...", ...], answer: "(A)", glue: [[s, e], ...], duration}.

    Args:
        path: the annotation file.
        video_root: folder the video names are relative to; the file's own folder unless told.

    Raises:
        ValueError: not such a file; the message names the row, the rule, the value and the remedy.
        OSError: the file cannot be read.
    """
    file = Path(path)
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{file}: annotation files are limited to {MAX_FILE_BYTES} bytes, got {size}; split the file")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: must be a UTF-8 JSON list of questions, got {error}; check the path") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f"{file}: must be a non-empty JSON list of questions, got {type(rows).__name__}; check the path"
        )
    root = Path(video_root) if video_root is not None else file.parent
    return [_sample(row, f"{file}, row {number}", root) for number, row in enumerate(rows)]


def _sample(row: Any, where: str, root: Path) -> Sample:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be an object, got {type(row).__name__}; see the NExT-GQA style")
    for key in ("video", "question", "options", "answer", "glue", "duration"):
        if key not in row:
            raise ValueError(f"{where}: the key '{key}' is missing, got {sorted(row)}; add it")
    for key in ("video", "question", "answer"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise ValueError(f"{where}: '{key}' must be a non-empty string, got {row[key]!r:.80}; correct it")
    duration = _seconds(row["duration"], f"{where}: 'duration'")
    options = _options(row["options"], where)
    labelled = _LABELLED.fullmatch(row["answer"].strip())
    letter = labelled[1] if labelled else row["answer"].strip()
    if letter not in OPTION_LETTERS[: len(options)] or len(letter) != 1:
        raise ValueError(
            f"{where}: 'answer' must be the letter of one of the {len(options)} options, got {row['answer']!r:.80}; "
            f"use '(A)' to '({OPTION_LETTERS[len(options) - 1]})'"
        )
    return Sample(
        video=str(root / row["video"]),
        question=row["question"],
        options=options,
        answer=letter,
        spans=_spans(row["glue"], duration, where),
        duration=duration,
    )


def _options(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise ValueError(f"{where}: 'options' must be a list of strings, got {value!r:.80}; write [\"(A) ...\", ...]")
    if not 2 <= len(value) <= len(OPTION_LETTERS):
        raise ValueError(f"{where}: 'options' must be 2 to {len(OPTION_LETTERS)} texts, got {len(value)}; correct them")
    texts = []
    for letter, option in zip(OPTION_LETTERS, value, strict=False):
        labelled = _LABELLED.fullmatch(option.strip())
        if labelled and labelled[1] != letter:
            raise ValueError(f"{where}: option {letter} is labelled ({labelled[1]}); sort the options by their letters")
        texts.append(labelled[2] if labelled else option.strip())
    return tuple(texts)


def _spans(value: Any, duration: float, where: str) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: 'glue' must be a list of [start, end], got {value!r:.80}; write [[1.0, 2.5]]")
    spans = []
    for span in value:
        if not isinstance(span, Sequence) or isinstance(span, str) or len(span) != 2:
            raise ValueError(f"{where}: a span must be [start, end] in seconds, got {span!r:.80}; correct it")
        start, end = (_seconds(time, f"{where}: a span's time") for time in span)
        # Published files round the duration and the spans separately: half a second of tolerance, no more.
        if start > end or end > duration + 0.5:
            raise ValueError(
                f"{where}: a span must have start <= end <= duration, got [{start}, {end}] in {duration} s; correct it"
            )
        spans.append((start, end))
    return tuple(spans)


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a number of seconds >= 0, got {value!r:.80}; correct it")
    return float(value)
