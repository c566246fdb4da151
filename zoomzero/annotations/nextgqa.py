"""NExT-GQA as published: <split>.csv, gsub_<split>.json and map_vid_vidorID.json.

A CSV row is one question {video_id, question, answer (the option's text), qid, type, a0..a4}; gsub holds each video's
length and the evidence of its questions; the map leads from a video's number to its path without ".mp4".

A question without evidence in gsub is not part of the benchmark: its row is bad. A folder with an annotations.json
instead (the style of the training file, `zoomzero.annotations.questions`) is read too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoomzero.annotations import rows
from zoomzero.annotations.files import first_existing, read_csv_rows, read_json_object, video_file
from zoomzero.annotations.rows import RowReader, RuleError
from zoomzero.annotations.sample import Sample

SOURCE = "https://github.com/doc-doc/NExT-GQA (datasets/nextgqa)"
OPTION_KEYS = ("a0", "a1", "a2", "a3", "a4")


def read(root: Path, split: str, videos: Path, reader: RowReader) -> list[Sample]:
    """Samples of a split ("val" or "test"); arguments as `zoomzero.annotations.load_benchmark` passes them."""
    table = first_existing([root / f"{split}.csv"], SOURCE)
    spans_file = first_existing([root / f"gsub_{split}.json"], SOURCE)
    map_file = first_existing([root / "map_vid_vidorID.json"], SOURCE)
    questions = read_csv_rows(table)
    rows.require_keys(table, questions, ("video_id", "question", "answer", "qid", "type", *OPTION_KEYS), SOURCE)
    evidence, places = read_json_object(spans_file), read_json_object(map_file)

    def sample(row: Any, _: int) -> Sample:
        video, qid = rows.name(row, "video_id"), rows.name(row, "qid")
        if video not in places:
            raise RuleError(f"'video_id' must be a key of {map_file.name}", video, f"get the file from {SOURCE}")
        entry = evidence.get(video)
        location = entry.get("location") if isinstance(entry, dict) else None
        if not isinstance(location, dict) or not location.get(qid):
            raise RuleError(
                f"the question must have evidence in {spans_file.name}", f"video {video}, qid {qid}",
                "take both files from one release",
            )  # fmt: skip
        length = rows.duration(entry)
        choices = rows.options([rows.text(row, key) for key in OPTION_KEYS], "a0 to a4")
        return Sample(
            video=video_file(videos, str(places[video])),
            question=rows.text(row, "question"),
            options=choices,
            answer=rows.text_answer(row["answer"], choices),
            spans=rows.spans(location[qid], f"location of qid {qid}", length),
            duration=length,
            question_id=f"{video}_{qid}",
            task=rows.text(row, "type"),
        )

    return reader.read(table, questions, sample)
