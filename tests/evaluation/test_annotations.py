"""Annotation files are bytes from outside: every broken rule is named with its file and row."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from zoomzero.annotations import BadRow, load_annotations
from zoomzero.annotations.durations import DurationCheck, WrongDuration

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
    assert (sample.duration, sample.question_id, sample.task, sample.tasks) == (10.0, "", "", ())
    plain = {**GOOD, "options": ["cat", "dog"], "answer": "A", "question_id": 7, "task": "CW", "subtitles": "a.srt"}
    sample = load_annotations(_write(tmp_path, [plain]), video_root="/videos")[0]
    assert (sample.video, sample.options, sample.answer) == ("/videos/a.mp4", ("cat", "dog"), "A")
    assert (sample.question_id, sample.task, sample.subtitles) == ("7", "CW", "/videos/a.srt")


def test_the_row_on_the_documentation_page_is_read(tmp_path: Path, checkout: Path) -> None:
    page = (checkout / "docs" / "evaluating.md").read_text(encoding="utf-8")
    start = page.index('    {"video"')
    file = tmp_path / "questions.jsonl"
    file.write_text(" ".join(page[start : page.index("\n\n", start)].split()))
    (sample,) = load_annotations(file, strict=True)
    assert (sample.options, sample.answer, sample.spans) == (("the cat", "the dog"), "B", ((3.0, 5.5),))


# Each kind of file that people have, with a text that a wrong encoding would spoil.
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("form", ["list", "lines", "lines_with_gaps", "indented"])
def test_json_and_json_lines_with_and_without_a_byte_order_mark(tmp_path: Path, form: str, mark: bytes) -> None:
    rows = [{**GOOD, "question": "Wér?\u2028Who?"}, GOOD]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = {
        "list": f"[{','.join(lines)}]",
        "indented": json.dumps(rows, indent=2),
        "lines": "\n".join(lines),
        "lines_with_gaps": "\r\n\r\n".join(lines) + "\r\n",
    }[form]
    file = tmp_path / "questions.any"
    file.write_bytes(mark + text.encode("utf-8"))
    assert [sample.question for sample in load_annotations(file)] == ["Wér?\u2028Who?", "Who?"]


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["(A) x", "(B) y"], ("x", "y")),
        (["A. x", "B. y"], ("x", "y")),
        (["A) x", "B) y", "C) z"], ("x", "y", "z")),
        (["A: x", "B: y"], ("x", "y")),
        (["x", "y"], ("x", "y")),
        (["(A) x", "y"], ("x", "y")),
        # Not labels: only one option looks like it.
        (["A. Lincoln", "Mary"], ("A. Lincoln", "Mary")),
        (["B. B. King", "A. Lincoln", "x"], ("B. B. King", "A. Lincoln", "x")),
        ([" (A)x ", "(B)\ty"], ("x", "y")),
        ([f"({letter}) {letter}{letter}" for letter in "ABCDEFGH"], tuple(letter * 2 for letter in "ABCDEFGH")),
    ],
)
def test_options_in_every_style(tmp_path: Path, options: list[str], texts: tuple[str, ...]) -> None:
    assert load_annotations(_write(tmp_path, [{**GOOD, "options": options, "answer": "(A)"}]))[0].options == texts


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(C)", "C"), ("C", "C"), ("C.", "C"), ("C)", "C"), (" C ", "C"), ("fox", "C"), ("Fox", "C"), ("fox.", "C"),
        ("c", "C"), ("(c)", "C"), ("(C) fox", "C"), ("C. Fox", "C"),
        (2, "C"), (0, "A"), ("2", "D"), ("3", "D"), ("1", "B"),
    ],
)  # fmt: skip
def test_answers_as_letter_text_or_index(tmp_path: Path, answer: Any, letter: str) -> None:
    """The last option is the text "2", which goes before the index."""
    row = {**GOOD, "options": ["cat", "dog", "fox", "2"], "answer": answer}
    if answer == 2:
        row["options"] = ["cat", "dog", "fox", "owl"]
    assert load_annotations(_write(tmp_path, [row]))[0].answer == letter


def test_an_answer_that_reads_two_ways_is_refused_unless_written_as_a_label(tmp_path: Path) -> None:
    row = {**GOOD, "options": ["B", "A", "C"]}
    message = "'answer' is the letter or index of one option and the text of another, got"
    for answer in ("A", "B"):
        with pytest.raises(ValueError, match=f"{message} '{answer}'"):
            load_annotations(_write(tmp_path, [{**row, "answer": answer}]))
    assert load_annotations(_write(tmp_path, [{**row, "answer": "(A)"}]))[0].answer == "A"
    assert load_annotations(_write(tmp_path, [{**row, "answer": "C"}]))[0].answer == "C"
    numbers = {**GOOD, "options": ["1", "0"], "answer": 1}
    with pytest.raises(
        ValueError, match="'answer' is the letter or index of one option and the text of another, got 1"
    ):
        load_annotations(_write(tmp_path, [numbers]))


def test_of_two_options_with_one_text_either_is_right(tmp_path: Path) -> None:
    row = {**GOOD, "options": ["cat", "dog", "cat"], "answer": "cat"}
    sample = load_annotations(_write(tmp_path, [row]))[0]
    assert sample.answer == "A"
    assert [sample.is_right(letter) for letter in ("A", "B", "C", "D", None, "")] == [
        True, False, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": ""}, "row 1: 'video' must be a non-empty string"),
        ({"video": "a\0b"}, "row 1: 'video' must not contain the character NUL"),
        ({"question": None}, "row 1: 'question' must be a non-empty string, got None"),
        ({"options": "AB"}, "'options' must be a list of strings"),
        ({"options": ["(A) x"]}, "'options' must be 2 to 8 texts, got 1"),
        ({"options": list("abcdefghi")}, "'options' must be 2 to 8 texts, got 9"),
        ({"options": ["(B) x", "(A) y"]}, r"option A is labelled \(B\)"),
        ({"options": ["B. x", "A. y"]}, r"option A is labelled \(B\)"),
        ({"options": ["x", " "]}, "option B must not be empty"),
        ({"answer": "(C)"}, r"'answer' must be the letter of one of the 2 options or its text, got '\(C\)'"),
        ({"answer": "AB"}, "'answer' must be the letter of one"),
        ({"answer": 2}, "'answer' must be the letter of one"),
        ({"answer": "(A) dog"}, "'answer' must be the letter of one"),
        ({"answer": "B. fox"}, "'answer' must be the letter of one"),
        ({"answer": -1}, "'answer' must be the letter of one"),
        ({"answer": True}, "'answer' must be the letter of one"),
        ({"answer": ""}, "'answer' must be the letter of one"),
        ({"glue": [[3, 2]]}, "start <= end <= duration"),
        ({"glue": [[3, 20]]}, "start <= end <= duration in 10 s"),
        ({"glue": [[-1, 2]]}, "must be a number of seconds >= 0, got -1"),
        ({"glue": [[True, 2]]}, "must be a number of seconds >= 0, got True"),
        ({"glue": ["12"]}, r"a span must be \[start, end\]"),
        ({"glue": "[[1, 2]]"}, r"'glue' must be a list of \[start, end\]"),
        ({"duration": "x"}, "'duration' must be a number of seconds >= 0"),
        ({"duration": 0}, "annotations.json, row 1: 'duration' must be above 0 seconds, got 0"),
        ({"duration": float("nan")}, "'duration' must be a number of seconds >= 0, got nan"),
        ({"question": "x" * 10_001}, "a question must have at most 10000 characters, got 10001; shorten it"),
        ({"options": ["cat", "x" * 10_001]}, "an option must have at most 10000 characters, got 10001"),
        ({"question_id": 0.5}, "'question_id' must be a name or a number, got 0.5"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_annotations(_write(tmp_path, [GOOD, {**GOOD, **change}]))


@pytest.mark.parametrize("num_digits", [41, 401, 5001])
@pytest.mark.parametrize("where", ["duration", "glue"])
def test_numbers_of_absurd_length_are_named_with_their_row(tmp_path: Path, num_digits: int, where: str) -> None:
    digits = "7" * num_digits
    row = json.dumps({**GOOD, where: "HERE"}).replace('"HERE"', digits if where == "duration" else f"[[0, {digits}]]")
    file = tmp_path / "annotations.json"
    for text in (f"[{json.dumps(GOOD)}, {row}]", f"{json.dumps(GOOD)}\n{row}"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"annotations\.json, row 1: .*must be a number of seconds >= 0, got '777"):
            load_annotations(file)


def test_devices_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (("/dev/zero", "a character device"), (tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"an annotation file must be a regular file, got {kind}"):
            load_annotations(path)


def test_few_bad_rows_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**GOOD, "question": f"{i}?"} for i in range(200)]
    rows[5] = {**GOOD, "duration": -1}
    rows[190] = {**GOOD, "answer": "fox"}
    file = _write(tmp_path, rows)
    bad: list[BadRow] = []
    samples = load_annotations(file, on_bad_row=bad.append)
    assert len(samples) == 198
    assert samples[5].question == "6?"
    assert [(row.file, row.row, row.value) for row in bad] == [(str(file), 5, "-1"), (str(file), 190, "'fox'")]
    assert "'duration' must be a number of seconds >= 0" in bad[0].rule
    with caplog.at_level(logging.WARNING):
        load_annotations(file)
    assert [f"row {number}:" in caplog.messages[i] for i, number in enumerate((5, 190))] == [True, True]
    # One more is above a hundredth; strict allows none.
    with pytest.raises(ValueError, match=r"row 5: .*\(2 of 200 rows break a rule, more than max_bad_fraction=0 allows"):
        load_annotations(file, strict=True)
    rows[7] = "text"
    with pytest.raises(ValueError, match=r"\(3 of 200 rows break a rule, more than max_bad_fraction=0\.01 allows\)"):
        load_annotations(_write(tmp_path, rows))
    assert len(load_annotations(file, max_bad_fraction=0.02)) == 197
    with pytest.raises(ValueError, match=r"max_bad_fraction must be in \[0, 1\], got 1\.5"):
        load_annotations(file, max_bad_fraction=1.5)
    with pytest.raises(ValueError, match="1 of 1 rows break a rule"):
        load_annotations(_write(tmp_path, rows[7:8]), max_bad_fraction=1.0)


def test_a_cut_line_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join([json.dumps(GOOD)] * 150 + [json.dumps(GOOD)[:40]]))
    bad: list[BadRow] = []
    assert len(load_annotations(file, on_bad_row=bad.append)) == 150
    assert (bad[0].row, "a line must be JSON" in bad[0].rule) == (150, True)


def test_a_name_that_stands_twice_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{**GOOD, "question_id": "q1"}, {**GOOD, "question_id": "q1"}]
    with pytest.raises(ValueError, match="row 1: a question's name must stand once, got 'q1'"):
        load_annotations(_write(tmp_path, rows))


def test_missing_keys_and_other_files_are_named(tmp_path: Path) -> None:
    short = {key: value for key, value in GOOD.items() if key != "glue"}
    with pytest.raises(ValueError, match="row 0: the key 'glue' is missing"):
        load_annotations(_write(tmp_path, [short]))
    with pytest.raises(ValueError, match="must be a non-empty JSON list of questions or JSON Lines, got an empty list"):
        load_annotations(_write(tmp_path, []))
    with pytest.raises(ValueError, match="row 0: the key 'video' is missing, got \\['a'\\]"):
        load_annotations(_write(tmp_path, {"a": 1}))
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"data": [GOOD]}, indent=1))
    with pytest.raises(ValueError, match="must be a non-empty JSON list of questions or JSON Lines, got dict"):
        load_annotations(file)
    for content in (
        b"\xff\x00",
        b"",
        b"video,question\na,b\n",
        ("[" * 200_000).encode(),
        b"\x93NUMPY" + bytes(range(256)),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"annotations\.json: must be (a )?UTF-8"):
            load_annotations(file)
    with pytest.raises(FileNotFoundError):
        load_annotations(tmp_path / "absent.json")


def test_lengths_that_are_not_the_files_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    check = DurationCheck()
    for _ in range(3):
        check.compare("a.mp4", 10.0, 12.5)
        check.compare("b.mp4", 10.0, 10.9)
        check.compare("c.mp4", None, 5.0)
    assert check.wrong == {"a.mp4": WrongDuration("a.mp4", 10.0, 12.5)}
    assert caplog.messages == ["a.mp4: annotated as 10.0 s, the file has 12.5 s"]
