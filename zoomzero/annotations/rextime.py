"""ReXTime: the release with options, rextime_<split>_release.json or rextime_<split>.json.

Rows are {qid, vid, question, options, ans (letter), span: [s, e], duration}, as JSON or JSON Lines; "query" and
"relevant_windows", the names of the repository's own validation file, are read too. The truth of the test split is not
public: where no row has a right answer the samples have none, and `write_submission` makes what the authors' server
takes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from zoomzero.annotations import rows
from zoomzero.annotations.files import first_existing, read_json_rows, video_file
from zoomzero.annotations.rows import RowReader
from zoomzero.annotations.sample import Sample
from zoomzero.files import write_whole
from zoomzero.intervals import Span

SOURCE = "https://huggingface.co/datasets/ReXTime/ReXTime"


def read(root: Path, split: str, videos: Path, reader: RowReader) -> list[Sample]:
    """Samples of a split ("val" or "test"); arguments as `zoomzero.annotations.load_benchmark` passes them."""
    names = [f"rextime_{split}{form}" for form in ("_release.json", ".json", ".jsonl")]
    file = first_existing([root / name for name in names], SOURCE)
    found = read_json_rows(file)
    named = {key for row in found if isinstance(row, dict) for key in row}
    question = "query" if "query" in named and "question" not in named else "question"
    window = "relevant_windows" if "relevant_windows" in named and "span" not in named else "span"
    rows.require_keys(file, found, ("qid", "vid", question, "options"), SOURCE)
    is_secret = not any(isinstance(row, dict) and row.get("ans") for row in found)

    def sample(row: Any, _: int) -> Sample:
        length = rows.duration(row) if isinstance(row, dict) and "duration" in row else None
        choices = rows.options(rows.field(row, "options"))
        return Sample(
            video=video_file(videos, rows.name(row, "vid")),
            question=rows.text(row, question),
            options=choices,
            answer="" if is_secret else rows.letter_answer(rows.field(row, "ans"), choices, "ans"),
            spans=() if is_secret else rows.spans(_windows(rows.field(row, window)), window, length),
            duration=length,
            question_id=rows.name(row, "qid"),
            task=rows.text(row, "category") if row.get("category") else "",
        )

    return reader.read(file, found, sample)


def _windows(value: Any) -> Any:
    """[[s, e]] from [s, e] too."""
    is_flat = isinstance(value, list) and len(value) == 2 and not any(isinstance(item, list) for item in value)
    return [value] if is_flat else value


class _Answered(Protocol):
    """What a submission needs of a prediction."""

    @property
    def letter(self) -> str | None: ...
    @property
    def spans(self) -> tuple[Span, ...]: ...


def write_submission(
    path: str | os.PathLike[str], samples: Sequence[Sample], predictions: Sequence[_Answered | None]
) -> None:
    """Write the authors' submission: JSON Lines of {qid, pred_relevant_windows, ans}.

    Their script fails at a question that is missing: one without an answer is written with the empty window [0, 0] and
    the answer "", which count as wrong.
    """
    lines = []
    for sample, prediction in zip(samples, predictions, strict=True):
        spans = prediction.spans if prediction is not None else ()
        row = {
            "qid": sample.question_id,
            "pred_relevant_windows": [list(span) for span in spans] or [[0.0, 0.0]],
            "ans": (prediction.letter if prediction is not None else None) or "",
        }
        lines.append(json.dumps(row) + "\n")
    write_whole(path, "".join(lines))
