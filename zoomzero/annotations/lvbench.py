"""LVBench: video_info.meta.jsonl (one line per video, with time references), or the parquet file of its release.

A meta line is {key, type, video_info: {duration_minutes, ...}, qa: [{uid, question, answer, question_type,
time_reference}, ...]}; a parquet row is {key, question, question_type, answer} and may have uid and time_reference.
The question's first line asks, its next lines are the options "(A) ...". question_type is a list: a question counts in
each of its types. A time reference "02:15-02:45" is the evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoomzero.annotations import rows
from zoomzero.annotations.files import first_existing, read_json_rows, read_parquet_rows, video_file
from zoomzero.annotations.rows import RowReader, RuleError
from zoomzero.annotations.sample import TASK_SEPARATOR, Sample
from zoomzero.intervals import Span

SOURCE = "https://huggingface.co/datasets/zai-org/LVBench"
META_FILE = "video_info.meta.jsonl"

_CLOCK = r"(?:([0-9]{1,2}):)?([0-9]{1,3}):([0-9]{2}(?:\.[0-9]+)?)"
_REFERENCE = re.compile(rf"\s*{_CLOCK}\s*(?:[-–~]\s*{_CLOCK}\s*)?")


def read(root: Path, split: str, videos: Path, reader: RowReader) -> list[Sample]:
    """Samples of the benchmark (it has one split); arguments as `zoomzero.annotations.load_benchmark` passes them."""
    parquet = [
        folder / f"{part}-00000-of-00001.parquet" for folder in (root / "data", root) for part in ("train", split)
    ]
    file = first_existing([root / META_FILE, root / "data" / META_FILE, *parquet], SOURCE)
    if file.name == META_FILE:
        lines = read_json_rows(file)
        rows.require_keys(file, lines, ("key", "qa"), SOURCE)
        found = [question for line in lines for question in _questions(line)]
    else:
        found = list(read_parquet_rows(file))
    rows.require_keys(file, found, ("key", "question", "question_type", "answer"), SOURCE)
    return reader.read(file, found, lambda row, number: _sample(row, number, videos))


def _questions(line: Any) -> list[Any]:
    """The questions of a line as rows of their own; a line that is none comes back as it is, for the reader to name."""
    if not isinstance(line, Mapping) or not isinstance(line.get("qa"), list):
        return [line]
    shared = {"key": line.get("key"), "type": line.get("type"), "video_info": line.get("video_info")}
    return [{**shared, **question} if isinstance(question, Mapping) else question for question in line["qa"]]


def _sample(row: Any, number: int, videos: Path) -> Sample:
    question, *lines = [line.strip() for line in rows.text(row, "question").split("\n") if line.strip()]
    choices = rows.options(lines, "the lines below the question")
    types = rows.field(row, "question_type")
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list) or not types or not all(isinstance(kind, str) and kind.strip() for kind in types):
        raise RuleError("'question_type' must be a list of names", types, "correct it")
    info = row.get("video_info")
    minutes = info.get("duration_minutes") if isinstance(info, Mapping) else None
    length = None if minutes is None else 60 * rows.seconds(minutes, "'duration_minutes'")
    return Sample(
        video=video_file(videos, rows.name(row, "key")),
        question=question,
        options=choices,
        answer=rows.letter_answer(rows.field(row, "answer"), choices),
        spans=_evidence(row.get("time_reference")),
        duration=length,
        question_id=rows.name(row, "uid") if row.get("uid") is not None else str(number),
        task=TASK_SEPARATOR.join(kind.strip() for kind in types),
        category=rows.text(row, "type") if row.get("type") else "",
    )


def _evidence(reference: Any) -> tuple[Span, ...]:
    """Spans of "mm:ss-mm:ss" or "h:mm:ss-h:mm:ss"; a single time is a point. Other texts name no time."""
    match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
    if match is None:
        return ()
    times = [
        int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
        for hours, minutes, seconds in (match.groups()[:3], match.groups()[3:])
        if minutes is not None
    ]
    return ((times[0], times[-1]),) if times[0] <= times[-1] else ()
