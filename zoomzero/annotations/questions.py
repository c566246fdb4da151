"""The project's own format, for training and for questions of one's own: the style of NExT-GQA's training file.

Each row is {"video", "question", "options", "answer", "glue", "duration"}: a path, a text, 2 to 8 options ("(A) x",
"A. x", "A) x" or "x"), the right one as letter, text or index from 0, the evidence as [[start, end], ...] and the
video's length, both in seconds. "question_id", "task", "duration_class", "category" and "subtitles" may stand beside. A
row without "options" and "answer" asks for the evidence alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoomzero.annotations import rows
from zoomzero.annotations.files import read_json_rows
from zoomzero.annotations.rows import BadRow, RowReader, RuleError
from zoomzero.annotations.sample import Sample
from zoomzero.limits import MAX_BAD_FRACTION


def load_annotations(
    path: str | os.PathLike[str],
    video_root: str | os.PathLike[str] | None = None,
    *,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    strict: bool = False,
    on_bad_row: Callable[[BadRow], None] | None = None,
) -> list[Sample]:
    """Read a JSON list or JSON Lines of questions; see the file header for a row.

    Args:
        path: the annotation file, with or without a byte-order mark.
        video_root: folder the video names are relative to; the file's own folder unless told.
        max_bad_fraction: share of the rows that may break a rule; they are left out.
        strict: allow none.
        on_bad_row: called with each row left out; logged as a warning unless told.

    Raises:
        ValueError: not such a file, or too many bad rows; the message names file, row, rule, value and remedy.
        OSError: the file cannot be read.
    """
    file = Path(path)
    root = Path(video_root) if video_root is not None else file.parent
    reader = RowReader(max_bad_fraction, strict, on_bad_row)
    samples = reader.read(file, read_json_rows(file), lambda row, _: _sample(row, root))
    reader.finish()
    return samples


def _sample(row: Any, root: Path) -> Sample:
    asks_for_spans = isinstance(row, dict) and "options" not in row and "answer" not in row
    for key in ("video", "question", *(() if asks_for_spans else ("options", "answer")), "glue", "duration"):
        rows.field(row, key)
    video = rows.text(row, "video")
    if "\0" in video:
        raise RuleError("'video' must not contain the character NUL", video, "correct the path")
    length = rows.duration(row)
    choices = () if asks_for_spans else rows.options(row["options"])
    subtitles = row.get("subtitles")
    return Sample(
        video=str(root / video),
        question=rows.text(row, "question"),
        options=choices,
        answer="" if asks_for_spans else rows.any_answer(row["answer"], choices),
        spans=rows.spans(row["glue"], "glue", length),
        duration=length,
        question_id=rows.name(row, "question_id") if "question_id" in row else "",
        task=rows.text(row, "task") if "task" in row else "",
        duration_class=rows.text(row, "duration_class") if "duration_class" in row else "",
        category=rows.text(row, "category") if "category" in row else "",
        subtitles=None if subtitles is None else str(root / rows.text(row, "subtitles")),
    )
