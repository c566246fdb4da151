"""Video-MME: the parquet file of its release, with subtitles in subtitle/<videoID>.srt where they were fetched.

Rows are {video_id, videoID, url, duration ("short", "medium", "long"), domain, sub_category, task_type, question_id,
question, options, answer (letter)}. It has no evidence and no lengths in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoomzero.annotations import rows
from zoomzero.annotations.files import first_existing, read_parquet_rows, video_file
from zoomzero.annotations.rows import RowReader, RuleError
from zoomzero.annotations.sample import Sample

SOURCE = "https://huggingface.co/datasets/lmms-lab/Video-MME"
KEYS = ("videoID", "duration", "domain", "task_type", "question_id", "question", "options", "answer")
DURATION_CLASSES = ("short", "medium", "long")


def read(root: Path, split: str, videos: Path, reader: RowReader) -> list[Sample]:
    """Samples of the split "test"; arguments as `zoomzero.annotations.load_benchmark` passes them."""
    name = f"{split}-00000-of-00001.parquet"
    file = first_existing([root / "videomme" / name, root / name], SOURCE)
    found = read_parquet_rows(file)
    rows.require_keys(file, found, KEYS, SOURCE)

    def sample(row: Any, _: int) -> Sample:
        video = rows.name(row, "videoID")
        duration_class = rows.text(row, "duration")
        if duration_class not in DURATION_CLASSES:
            raise RuleError("'duration' must be short, medium or long", duration_class, "fetch the file again")
        choices = rows.options(rows.field(row, "options"))
        subtitles = root / "subtitle" / f"{video}.srt"
        return Sample(
            video=video_file(videos, video),
            question=rows.text(row, "question"),
            options=choices,
            answer=rows.letter_answer(rows.field(row, "answer"), choices),
            spans=(),
            duration=None,
            question_id=rows.name(row, "question_id"),
            task=rows.text(row, "task_type"),
            duration_class=duration_class,
            category=rows.text(row, "domain"),
            subtitles=str(subtitles) if subtitles.is_file() else None,
        )

    return reader.read(file, found, sample)
