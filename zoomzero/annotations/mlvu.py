"""MLVU's multiple-choice questions: seven files json/1_plotQA.json to json/7_topic_reasoning.json, one per task.

Rows are {video, duration, question, candidates, answer (the right candidate's text), question_type}. The videos lie in
video/<name of the file>/, as in the release, or all in one folder.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from zoomzero.annotations import rows
from zoomzero.annotations.files import first_existing, read_json_rows
from zoomzero.annotations.rows import RowReader
from zoomzero.annotations.sample import Sample

SOURCE = "https://huggingface.co/datasets/MLVU/MVLU"
FILES = (
    "1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning",
)  # fmt: skip
KEYS = ("video", "question", "candidates", "answer")


def read(root: Path, split: str, videos: Path, reader: RowReader) -> list[Sample]:
    """Samples of all seven files (the dev set, whatever the split is called)."""
    samples: list[Sample] = []
    for name in FILES:
        file = first_existing([root / "json" / f"{name}.json", root / f"{name}.json"], SOURCE)
        found = read_json_rows(file)
        rows.require_keys(file, found, KEYS, SOURCE)
        folder = videos / name if (videos / name).is_dir() else videos
        samples += reader.read(file, found, functools.partial(_sample, folder=folder, name=name))
    return samples


def _sample(row: Any, number: int, folder: Path, name: str) -> Sample:
    length = rows.duration(row) if isinstance(row, dict) and "duration" in row else None
    # Some published rows have a candidate without a text; they count.
    choices = rows.options(rows.field(row, "candidates"), "candidates", allow_empty=True)
    return Sample(
        video=str(folder / rows.name(row, "video")),
        question=rows.text(row, "question"),
        options=choices,
        answer=rows.text_answer(rows.field(row, "answer"), choices),
        spans=(),
        duration=length,
        question_id=f"{name}_{number}",
        task=rows.text(row, "question_type") if row.get("question_type") else name.partition("_")[2],
    )
