"""Readers of published benchmarks: on the real rows where they lie, else on files made from their field lists.

Video-MME's and LVBench's files and ReXTime's release with options are only known by their fields.
"""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.published import published

from zoomzero.annotations import BadRow, Sample, load_benchmark, write_submission
from zoomzero.evaluation import Prediction

# -- NExT-GQA --------------------------------------------------------------------------------------------------------

QUESTION = {
    "video_id": "100", "frame_count": "300", "width": "640", "height": "480", "question": "why did the boy smile",
    "answer": "he won", "qid": "4", "type": "CW",
    "a0": "he lost", "a1": "he won", "a2": "he fell", "a3": "he ran", "a4": "he ate",
}  # fmt: skip


def _nextgqa(
    folder: Path,
    rows: list[dict[str, str]],
    evidence: str | None = None,
    places: str | None = None,
    split: str = "test",
) -> Path:
    with (folder / f"{split}.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    spans = '{"100": {"duration": 10, "location": {"4": [[1, 2.5], [7, 10.3]]}, "fps": 30}}'
    (folder / "gsub_test.json").write_text(evidence or spans)
    (folder / "map_vid_vidorID.json").write_text(places or '{"100": "0101/100"}')
    return folder


def test_nextgqa(tmp_path: Path) -> None:
    (sample,) = load_benchmark("nextgqa", _nextgqa(tmp_path, [QUESTION]))
    assert sample == Sample(
        video=str(tmp_path / "0101" / "100.mp4"),
        question="why did the boy smile",
        options=("he lost", "he won", "he fell", "he ran", "he ate"),
        answer="B",
        spans=((1.0, 2.5), (7.0, 10.3)),
        duration=10.0,
        question_id="100_4",
        task="CW",
    )
    (tmp_path / "NExTVideo" / "0101").mkdir(parents=True)
    assert load_benchmark("nextgqa", tmp_path)[0].video == str(tmp_path / "NExTVideo" / "0101" / "100.mp4")
    (tmp_path / "NExTVideo" / "0101" / "100.mkv").touch()
    assert load_benchmark("nextgqa", tmp_path)[0].video == str(tmp_path / "NExTVideo" / "0101" / "100.mkv")
    assert load_benchmark("nextgqa", tmp_path, video_root="/v")[0].video == "/v/0101/100.mp4"


def test_nextgqa_in_the_style_of_its_training_file(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "question": "?", "options": ["x", "y"], "answer": "y", "glue": [[0, 1]], "duration": 3}
    (tmp_path / "annotations.json").write_text(json.dumps([row]))
    assert load_benchmark("nextgqa", tmp_path)[0].answer == "B"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "he slept"}, "test.csv, row 1: 'answer' must be the letter of one of the 5 options or its text"),
        ({"video_id": "101"}, "row 1: 'video_id' must be a key of map_vid_vidorID.json, got '101'"),
        ({"qid": "5"}, r"row 1: the question must have evidence in gsub_test.json, got 'video 100, qid 5'; take both"),
        ({}, "row 1: a question's name must stand once, got '100_4'"),
        ({"a3": ""}, "row 1: 'a3' must be a non-empty string, got ''"),
    ],
)
def test_nextgqa_rows_that_break_a_rule(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_benchmark("nextgqa", _nextgqa(tmp_path, [QUESTION, {**QUESTION, **change}]))


def test_nextgqa_files_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.csv: no such file; get it from https://.*NExT-GQA"):
        load_benchmark("nextgqa", tmp_path)
    _nextgqa(tmp_path, [{key: value for key, value in QUESTION.items() if key != "a2"}])
    with pytest.raises(ValueError, match=r"test\.csv: the key 'a2' is missing in all 1 rows; get the file from https:"):
        load_benchmark("nextgqa", tmp_path)
    _nextgqa(tmp_path, [QUESTION])
    (tmp_path / "gsub_test.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"gsub_test\.json: no such file"):
        load_benchmark("nextgqa", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"val\.csv: no such file"):
        load_benchmark("nextgqa", tmp_path, "val")


def test_a_video_listed_twice_is_an_error_unless_both_say_the_same(tmp_path: Path) -> None:
    entry = '"100": {"duration": 10, "location": {"4": [[1, 2]]}}'
    _nextgqa(tmp_path, [QUESTION], evidence=f"{{{entry}, {entry}}}")
    assert load_benchmark("nextgqa", tmp_path)[0].spans == ((1.0, 2.0),)
    _nextgqa(tmp_path, [QUESTION], evidence=f"{{{entry}, {entry.replace('[1, 2]', '[3, 4]')}}}")
    with pytest.raises(ValueError, match=r"gsub_test\.json: .*the key '100' stands twice with different values"):
        load_benchmark("nextgqa", tmp_path)
    _nextgqa(tmp_path, [QUESTION], places='{"100": "0101/100", "100": "0102/100"}')
    with pytest.raises(ValueError, match=r"map_vid_vidorID\.json: .*the key '100' stands twice with different values"):
        load_benchmark("nextgqa", tmp_path)


def test_nextgqa_as_published() -> None:
    samples = load_benchmark("nextgqa", published("nextgqa"), "val", strict=True)
    assert len(samples) == 3358
    assert Counter(sample.task for sample in samples) == {"CW": 1474, "TN": 879, "CH": 481, "TC": 472, "TP": 52}
    first = samples[0]
    assert (first.question_id, first.answer, first.spans) == ("4882821564_1", "C", ((13.8, 29.8),))
    assert first.options[2] == "unwrap it"
    assert first.video.endswith("1104/4882821564.mp4")
    assert len({sample.question_id for sample in samples}) == 3358
    # One published question has two options with the same text; neither is its answer.
    assert sum(len(set(sample.options)) < 5 for sample in samples) == 1


# -- ReXTime ---------------------------------------------------------------------------------------------------------

REXTIME = {
    "qid": "anet_val1", "vid": "v_abc", "question": "What next?",
    "options": ["A. He sits.", "B. He runs.", "C. He eats.", "D. He sings."],
    "ans": "B", "span": [3, 7.5], "duration": 60.5, "category": "sequential",
}  # fmt: skip


def test_rextime(tmp_path: Path) -> None:
    file = tmp_path / "rextime_test_release.json"
    file.write_text(json.dumps([REXTIME, {**REXTIME, "qid": "anet_val2", "span": [[0, 60.9]], "ans": "(D)"}]))
    one, two = load_benchmark("rextime", tmp_path)
    assert (one.options[1], one.answer, one.spans, one.duration) == ("He runs.", "B", ((3.0, 7.5),), 60.5)
    assert (one.video, one.question_id, one.task) == (str(tmp_path / "v_abc.mp4"), "anet_val1", "sequential")
    assert (two.answer, two.spans) == ("D", ((0.0, 60.9),))


def test_rextime_whose_truth_is_secret(tmp_path: Path) -> None:
    row = {key: value for key, value in REXTIME.items() if key not in ("ans", "span")}
    (tmp_path / "rextime_test_release.json").write_text(json.dumps([row, {**row, "qid": "q2"}]))
    samples = load_benchmark("rextime", tmp_path)
    assert [(sample.answer, sample.spans) for sample in samples] == [("", ()), ("", ())]
    write_submission(tmp_path / "out" / "submission.jsonl", samples, [Prediction("C", ((1.0, 2.0), (5.0, 6.0))), None])
    lines = [json.loads(line) for line in (tmp_path / "out" / "submission.jsonl").read_text().splitlines()]
    assert lines == [
        {"qid": "anet_val1", "pred_relevant_windows": [[1.0, 2.0], [5.0, 6.0]], "ans": "C"},
        {"qid": "q2", "pred_relevant_windows": [[0.0, 0.0]], "ans": ""},
    ]


def test_the_published_validation_windows_of_rextime_lack_the_options(tmp_path: Path) -> None:
    folder = published("rextime")
    with pytest.raises(ValueError, match=r"rextime_val\.jsonl: the key 'options' is missing in all 921 rows; get"):
        load_benchmark("rextime", folder, "val")
    # The same rows with options read as they are.
    lines = [json.loads(line) for line in (folder / "rextime_val.jsonl").read_text().splitlines()]
    text = "\n".join(json.dumps({**line, "options": ["w", "x", "y", "z"]}) for line in lines)
    (tmp_path / "rextime_val.jsonl").write_text(text)
    samples = load_benchmark("rextime", tmp_path, "val", strict=True)
    assert Counter(sample.answer for sample in samples) == {"A": 248, "D": 227, "B": 224, "C": 222}
    assert (samples[1].question_id, samples[1].spans, samples[1].duration) == ("anet_val92", ((5.0, 8.0),), 100.5)


# -- CG-Bench --------------------------------------------------------------------------------------------------------

CGBENCH = {
    "qid": 14, "video_uid": "3Zpm", "question": "Which colour?", "answer": "White",
    "choices": ["Grey", "Pale", "B", "C", "White", "Beige", "Ivory", "Sand"], "right_answer": "E",
    "clue_intervals": [[8, 11], [20, 25]], "domain": "Art", "sub_category": "Entity Perception", "duration": 2741,
}  # fmt: skip


def test_cgbench(tmp_path: Path) -> None:
    (tmp_path / "cgbench.json").write_text(json.dumps([CGBENCH]))
    (tmp_path / "cgbench_mini.json").write_text(json.dumps([{**CGBENCH, "right_answer": "H"}]))
    (whole,), (mini,) = load_benchmark("cgbench", tmp_path), load_benchmark("cgbench", tmp_path, "mini")
    assert (whole.answer, mini.answer, len(whole.options)) == ("E", "H", 8)
    assert (whole.question_id, whole.task, whole.category) == ("14", "Entity Perception", "Art")
    assert (whole.spans, whole.video) == (((8.0, 11.0), (20.0, 25.0)), str(tmp_path / "3Zpm.mp4"))
    (tmp_path / "cgbench.json").write_text(json.dumps([CGBENCH, {**CGBENCH, "qid": 15, "right_answer": "I"}]))
    with pytest.raises(ValueError, match="row 1: 'right_answer' must be the letter of one of the 8 options"):
        load_benchmark("cgbench", tmp_path)


def test_cgbench_as_published() -> None:
    samples = load_benchmark("cgbench", published("cgbench"), "mini", strict=True)
    assert samples == load_benchmark("cgbench", published("cgbench"))
    assert Counter(len(sample.options) for sample in samples) == {6: 17, 7: 14, 8: 9}
    assert (samples[0].options[4], samples[0].answer, samples[0].spans) == ("White", "E", ((8.0, 11.0),))


# -- Video-MME -------------------------------------------------------------------------------------------------------

VIDEOMME = {
    "video_id": "001", "videoID": "fFjv93ACGo8", "url": "https://example.org", "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity", "task_type": "Counting Problem", "question_id": "001-1", "question": "How many?",
    "options": ["A. 1.", "B. 2.", "C. 3.", "D. None of the above."], "answer": "C",
}  # fmt: skip


def _parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def test_videomme(tmp_path: Path) -> None:
    rows = [VIDEOMME, {**VIDEOMME, "question_id": "001-2", "duration": "long", "videoID": "other"}]
    _parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet", rows)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "fFjv93ACGo8.srt").write_text("1\n")
    (tmp_path / "data").mkdir()
    one, two = load_benchmark("videomme", tmp_path)
    assert (one.options, one.answer) == (("1.", "2.", "3.", "None of the above."), "C")
    assert (one.duration_class, one.task, one.category) == ("short", "Counting Problem", "Knowledge")
    assert (one.duration, one.spans, one.question_id) == (None, (), "001-1")
    assert one.video == str(tmp_path / "data" / "fFjv93ACGo8.mp4")
    assert (one.subtitles, two.subtitles) == (str(tmp_path / "subtitle" / "fFjv93ACGo8.srt"), None)
    assert two.duration_class == "long"


def test_videomme_files_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test-00000-of-00001\.parquet: no such file; get it from https://"):
        load_benchmark("videomme", tmp_path)
    file = tmp_path / "test-00000-of-00001.parquet"
    _parquet(file, [{key: value for key, value in VIDEOMME.items() if key != "task_type"}])
    with pytest.raises(ValueError, match="the key 'task_type' is missing in all 1 rows; get the file from https://"):
        load_benchmark("videomme", tmp_path)
    _parquet(file, [{**VIDEOMME, "duration": "tiny"}, VIDEOMME])
    with pytest.raises(ValueError, match="row 0: 'duration' must be short, medium or long, got 'tiny'"):
        load_benchmark("videomme", tmp_path)
    for content in (b"", b"PAR1", file.read_bytes()[:-30], b"PAR1" + b"\0" * 60 + b"PAR1"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="must be a parquet file"):
            load_benchmark("videomme", tmp_path)


# -- MLVU ------------------------------------------------------------------------------------------------------------

MLVU_FILES = ["1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning"]
MLVU = {
    "video": "count_1.mp4", "duration": 572.86, "question": "How often?", "candidates": ["2", "1", "5", "4"],
    "answer": "1", "question_type": "count",
}  # fmt: skip


def test_mlvu(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    for name in MLVU_FILES:
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps([MLVU, {**MLVU, "candidates": ["", "x", "1"]}]))
    (tmp_path / "video" / "4_count").mkdir(parents=True)
    samples = load_benchmark("mlvu", tmp_path)
    assert len(samples) == 14
    # The text "1" is option B, not the option of index 1 or the first letter.
    assert (samples[0].answer, samples[0].duration, samples[0].question_id) == ("B", 572.86, "1_plotQA_0")
    assert (samples[1].answer, samples[1].options) == ("C", ("", "x", "1"))
    assert samples[6].video == str(tmp_path / "video" / "4_count" / "count_1.mp4")
    assert samples[0].video == str(tmp_path / "video" / "count_1.mp4")
    (tmp_path / "json" / "5_order.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"5_order\.json: no such file; get it from https://"):
        load_benchmark("mlvu", tmp_path)


def test_mlvu_as_published() -> None:
    samples = load_benchmark("mlvu", published("mlvu"), strict=True)
    tasks = ["plotQA", "findNeedle", "ego", "count", "order", "anomaly_reco", "topic_reasoning"]
    assert Counter(sample.task for sample in samples) == dict.fromkeys(tasks, 25)
    assert (samples[0].answer, samples[0].options) == ("A", ("Yellow", "Red", "Green", "Blue"))
    # A published row has candidates without a text; its answer has one.
    assert (samples[23].options[0], samples[23].answer) == ("", "B")


# -- LVBench ---------------------------------------------------------------------------------------------------------

LVBENCH = {
    "uid": "7", "question": "What year?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633", "answer": "D",
    "question_type": ["key information retrieval", "reasoning"], "time_reference": "00:15-01:02:19",
}  # fmt: skip


def test_lvbench_from_the_meta_file(tmp_path: Path) -> None:
    lines = [
        {"key": "Cm73", "type": "cartoon", "video_info": {"duration_minutes": 87.5, "fps": 25.0}, "qa": [LVBENCH]},
        {"key": "Dn84", "type": "sport", "qa": [
            {**LVBENCH, "uid": "8", "time_reference": "At 15:30 or so"},
            {**LVBENCH, "uid": "9", "time_reference": "65:05"},
        ]},
    ]  # fmt: skip
    (tmp_path / "video_info.meta.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    one, two, three = load_benchmark("lvbench", tmp_path)
    assert (one.question, one.options, one.answer) == ("What year?", ("1636", "1366", "1363", "1633"), "D")
    assert one.tasks == ("key information retrieval", "reasoning")
    assert (one.spans, one.duration, one.category, one.question_id) == (((15.0, 3739.0),), 5250.0, "cartoon", "7")
    assert (two.spans, two.duration, two.video) == ((), None, str(tmp_path / "Dn84.mp4"))
    assert three.spans == ((3905.0, 3905.0),)


def test_lvbench_from_parquet(tmp_path: Path) -> None:
    row = {"key": "Cm73", **{key: value for key, value in LVBENCH.items() if key not in ("uid", "time_reference")}}
    _parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row, {**row, "question_type": ["reasoning"]}])
    one, two = load_benchmark("lvbench", tmp_path)
    assert (one.answer, one.question_id, two.question_id, two.tasks) == ("D", "0", "1", ("reasoning",))


def test_lvbench_lines_that_break_a_rule(tmp_path: Path) -> None:
    bad: list[BadRow] = []
    lines = [{"key": "a", "qa": [LVBENCH, {**LVBENCH, "uid": "8", "question": "What?"}, 3]}, {"key": "b"}]
    (tmp_path / "video_info.meta.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert len(load_benchmark("lvbench", tmp_path, max_bad_fraction=0.8, on_bad_row=bad.append)) == 1
    assert [row.rule for row in bad] == [
        "'the lines below the question' must be 2 to 8 texts", "a row must be an object",
        "the key 'question' is missing",
    ]  # fmt: skip


def test_unknown_benchmarks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of nextgqa, rextime, cgbench, videomme, mlvu, lvbench, got 'x'"):
        load_benchmark("x", tmp_path)
