"""Files of any content lead to samples or to an error that names the file, and to nothing else."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoomzero.annotations import load_annotations, load_benchmark

# Numbers, texts and containers that readers have stumbled over, here or elsewhere.
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**60), 10**60), st.floats(), st.text(max_size=8),
    st.sampled_from(["", " ", "\0", "\ud800", "(A)", "A", "B.", "9" * 500, "../..", "00:15-00:19", "x\n(A) 1\n(B) 2"]),
    st.lists(st.one_of(st.integers(-5, 50), st.text(max_size=3), st.none()), max_size=3),
    st.lists(st.lists(st.floats(), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip

OWN = {"video": "a.mp4", "question": "?", "options": ["x", "y"], "answer": "x", "glue": [[1, 2]], "duration": 10}
CGBENCH = {"qid": 1, "video_uid": "v", "question": "?", "choices": ["x", "y"], "right_answer": "A",
           "clue_intervals": [[1, 2]], "duration": 9, "domain": "d", "sub_category": "s"}  # fmt: skip
REXTIME = {"qid": "q", "vid": "v", "question": "?", "options": ["x", "y"], "ans": "A", "span": [1, 2], "duration": 9}
MLVU = {"video": "a.mp4", "duration": 3, "question": "?", "candidates": ["x", "y"], "answer": "x", "question_type": "t"}
LVBENCH = {"key": "k", "type": "t", "video_info": {"duration_minutes": 3}, "qa": [
    {"uid": "1", "question": "?\n(A) x\n(B) y", "answer": "A", "question_type": ["t"], "time_reference": "00:01-00:02"},
]}  # fmt: skip
VIDEOMME = {"videoID": "v", "duration": "short", "domain": "d", "task_type": "t", "question_id": "1", "question": "?",
            "options": ["x", "y"], "answer": "A"}  # fmt: skip


@st.composite
def _changed(draw: st.DrawFn, row: dict[str, Any]) -> Any:
    """A good row with a few values changed or taken away, inside `qa` too; or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ODD)
    changed = json.loads(json.dumps(row))
    places = [changed, *(entry for entry in changed.get("qa", []))]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places))
        key = draw(st.sampled_from(sorted(place))) if place else "x"
        if draw(st.booleans()):
            place[key] = draw(ODD)
        else:
            place.pop(key, None)
    return changed


def _read(load: Any, folder: Path) -> None:
    message, samples = "", []
    try:
        samples = load()
    except ValueError as error:
        message = str(error)
    assert samples or str(folder) in message
    for sample in samples:
        assert sample.question.strip()
        # A row without options and answer asks for its spans alone.
        assert 2 <= len(sample.options) <= 8 or (not sample.options and not sample.answer)
        assert sample.answer in tuple("ABCDEFGH"[: len(sample.options)]) or not sample.answer
        assert sample.duration is None or sample.duration > 0
        assert all(0 <= start <= end < float("inf") for start, end in sample.spans)
        assert "\0" not in sample.video


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(rows=st.lists(_changed(OWN), min_size=1, max_size=4), as_lines=st.booleans())
def test_own_questions(tmp_path: Path, rows: list[Any], as_lines: bool) -> None:
    file = tmp_path / "questions.json"
    file.write_text("\n".join(json.dumps(row) for row in rows) if as_lines else json.dumps(rows))
    _read(lambda: load_annotations(file, max_bad_fraction=1.0), tmp_path)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    for name in ("q.json", "test.csv", "cgbench.json", "video_info.meta.jsonl", "test-00000-of-00001.parquet"):
        (tmp_path / name).write_bytes(content)
    for name in ("gsub_test.json", "map_vid_vidorID.json"):
        (tmp_path / name).write_bytes(content)
    _read(lambda: load_annotations(tmp_path / "q.json"), tmp_path)
    for benchmark in ("nextgqa", "cgbench", "videomme", "lvbench"):
        _read(lambda name=benchmark: load_benchmark(name, tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("benchmark", "name", "row"),
    [
        ("cgbench", "cgbench.json", CGBENCH),
        ("rextime", "rextime_test.json", REXTIME),
        ("mlvu", "1_plotQA.json", MLVU),
        ("lvbench", "video_info.meta.jsonl", LVBENCH),
    ],
)
@FUZZ
@given(data=st.data())
def test_benchmarks_of_json(
    tmp_path: Path, benchmark: str, name: str, row: dict[str, Any], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(_changed(row), min_size=1, max_size=3))
    (tmp_path / name).write_text("\n".join(json.dumps(r) for r in rows) if name.endswith("l") else json.dumps(rows))
    if benchmark == "mlvu":
        others = ["2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning"]
        for other in others:
            (tmp_path / f"{other}.json").write_text(json.dumps([MLVU]))
    _read(lambda: load_benchmark(benchmark, tmp_path, max_bad_fraction=1.0), tmp_path)


@FUZZ
@given(rows=st.lists(_changed(VIDEOMME), min_size=1, max_size=3))
def test_videomme(tmp_path: Path, rows: list[Any]) -> None:
    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        pyarrow.parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    except (pyarrow.ArrowException, TypeError, OverflowError, UnicodeEncodeError):
        return  # parquet cannot hold these
    _read(lambda: load_benchmark("videomme", tmp_path, max_bad_fraction=1.0), tmp_path)


@FUZZ
@given(
    values=st.lists(
        st.one_of(st.text(max_size=6), st.sampled_from(["1", "v", "x", "", "CW"])), min_size=10, max_size=22
    ),
    evidence=st.one_of(_changed({"v": {"duration": 5, "location": {"1": [[1, 2]]}}}), ODD),
    entry=_changed({"duration": 5, "location": {"1": [[1, 2]]}}),
)
def test_nextgqa(tmp_path: Path, values: list[str], evidence: Any, entry: Any) -> None:
    header = ["video_id", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4"]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(header)
    writer.writerow(["v", "?", "x", "1", "CW", "x", "y", "z", "u", "w"])
    writer.writerow(values)
    (tmp_path / "test.csv").write_bytes(table.getvalue().encode("utf-8", "replace"))
    (tmp_path / "map_vid_vidorID.json").write_text('{"v": "0/v"}')
    for gsub in (evidence, {"v": entry}):
        (tmp_path / "gsub_test.json").write_text(json.dumps(gsub))
        _read(lambda: load_benchmark("nextgqa", tmp_path, max_bad_fraction=1.0), tmp_path)
