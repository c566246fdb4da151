"""Annotation files are bytes from outside: every broken rule is named with its row."""

import json
from pathlib import Path
from typing import Any

import pytest

from zoomzero.annotations import load_annotations

GOOD: dict[str, Any] = {
    "video": "a.mp4",
    "question": "Who?",
    "options": ["(A) cat", "(B) dog"],
    "answer": "(B)",
    "glue": [[1, 2.5]],
    "duration": 10,
}


def _write(folder: Path, rows: Any) -> Path:
    file = folder / "annotations.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_rows_become_samples(tmp_path: Path) -> None:
    sample = load_annotations(_write(tmp_path, [GOOD]))[0]
    assert sample.video == str(tmp_path / "a.mp4")
    assert (sample.options, sample.answer, sample.spans) == (("cat", "dog"), "B", ((1.0, 2.5),))
    plain = {**GOOD, "options": ["cat", "dog"], "answer": "A"}
    sample = load_annotations(_write(tmp_path, [plain]), video_root="/videos")[0]
    assert (sample.video, sample.options, sample.answer) == ("/videos/a.mp4", ("cat", "dog"), "A")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": ""}, "row 1: 'video' must be a non-empty string"),
        ({"question": None}, "row 1: 'question' must be a non-empty string"),
        ({"options": "AB"}, "'options' must be a list of strings"),
        ({"options": ["(A) x"]}, "'options' must be 2 to 8 texts, got 1"),
        ({"options": ["(B) x", "(A) y"]}, r"option A is labelled \(B\)"),
        ({"answer": "(C)"}, r"'answer' must be the letter of one of the 2 options, got '\(C\)'"),
        ({"answer": "AB"}, "'answer' must be the letter of one"),
        ({"glue": [[3, 2]]}, "start <= end <= duration"),
        ({"glue": [[3, 20]]}, "start <= end <= duration"),
        ({"glue": [[-1, 2]]}, "must be a number of seconds >= 0, got -1"),
        ({"glue": [[True, 2]]}, "must be a number of seconds >= 0, got True"),
        ({"glue": ["12"]}, r"a span must be \[start, end\]"),
        ({"duration": "x"}, "'duration' must be a number of seconds >= 0"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_annotations(_write(tmp_path, [GOOD, {**GOOD, **change}]))


def test_missing_keys_and_other_files_are_named(tmp_path: Path) -> None:
    short = {key: value for key, value in GOOD.items() if key != "glue"}
    with pytest.raises(ValueError, match="row 0: the key 'glue' is missing"):
        load_annotations(_write(tmp_path, [short]))
    for content in ([], {"a": 1}):
        with pytest.raises(ValueError, match="must be a non-empty JSON list"):
            load_annotations(_write(tmp_path, content))
    (tmp_path / "annotations.json").write_bytes(b"\xff\x00")
    with pytest.raises(ValueError, match="must be a UTF-8 JSON list"):
        load_annotations(tmp_path / "annotations.json")
    (tmp_path / "annotations.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="must be a UTF-8 JSON list"):
        load_annotations(tmp_path / "annotations.json")
    with pytest.raises(FileNotFoundError):
        load_annotations(tmp_path / "absent.json")
