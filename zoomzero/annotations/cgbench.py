"""CG-Bench: cgbench.json, or cgbench_mini.json for the split "mini".

Rows are {qid, video_uid, question, choices (5 to 8), right_answer (letter), clue_intervals: [[s, e], ...], domain,
sub_category, duration}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoomzero.annotations import rows
from zoomzero.annotations.files import first_existing, read_json_rows, video_file
from zoomzero.annotations.rows import RowReader
from zoomzero.annotations.sample import Sample

SOURCE = "https://huggingface.co/datasets/CG-Bench/CG-Bench"
KEYS = ("qid", "video_uid", "question", "choices", "right_answer", "clue_intervals", "duration")


def read(root: Path, split: str, videos: Path, reader: RowReader) -> list[Sample]:
    """Samples of "test" (the whole benchmark; the mini one where only that is there) or of "mini"."""
    names = ["cgbench_mini.json"] if split == "mini" else ["cgbench.json", "cgbench_mini.json"]
    file = first_existing([root / name for name in names], SOURCE)
    found = read_json_rows(file)
    rows.require_keys(file, found, KEYS, SOURCE)

    def sample(row: Any, _: int) -> Sample:
        length = rows.duration(row)
        choices = rows.options(rows.field(row, "choices"), "choices")
        return Sample(
            video=video_file(videos, rows.name(row, "video_uid")),
            question=rows.text(row, "question"),
            options=choices,
            answer=rows.letter_answer(rows.field(row, "right_answer"), choices, "right_answer"),
            spans=rows.spans(rows.field(row, "clue_intervals"), "clue_intervals", length),
            duration=length,
            question_id=rows.name(row, "qid"),
            task=rows.text(row, "sub_category") if row.get("sub_category") else "",
            category=rows.text(row, "domain") if row.get("domain") else "",
        )

    return reader.read(file, found, sample)
