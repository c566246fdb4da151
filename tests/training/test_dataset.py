"""Rows are checked before the first step: every kind of wrong row is named with its number, rule, value and remedy."""

from typing import Any

import pytest
from datasets import Dataset

from zoomzero.training.dataset import check_num_rows, checked_dataset

ROW = {"video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "B", "spans": [[1.0, 2.5]]}
SPECIAL = ("<|im_end|>", "<|video_pad|>")


def _checked(*rows: Any) -> Dataset:
    return checked_dataset(list(rows), "train_dataset", SPECIAL)


def test_good_rows_become_a_dataset() -> None:
    more = {**ROW, "options": [*"abcdefgh"], "answer": "H", "spans": [], "question": "Wer öffnet die Tür? 谁?"}
    dataset = _checked(ROW, more)
    assert dataset.column_names == ["video", "question", "options", "answer", "spans"]
    assert checked_dataset(dataset, "train_dataset", SPECIAL) is dataset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": ""}, r"'video' must be a non-empty string, got ''"),
        ({"video": None}, r"'video' must be a non-empty string, got None"),
        ({"question": "  "}, r"'question' must be a non-empty string"),
        ({"question": 3}, r"'question' must be a non-empty string, got 3"),
        ({"question": "a <|video_pad|> b"}, r"special token <\|video_pad\|>, got 'a <\|video_pad\|> b'; remove"),
        ({"options": ["x", "<|im_end|>"]}, r"special token <\|im_end\|>, got '<\|im_end\|>'; remove"),
        ({"question": "lone \ud800"}, r"valid Unicode, got .*remove the lone surrogate"),
        ({"options": ["x", "\udfff"]}, r"valid Unicode"),
        ({"options": ["x"]}, r"'options' must be 2 to 8 texts, or none for spans alone, got 1"),
        ({"options": [*"abcdefghi"]}, r"'options' must be 2 to 8 texts, or none for spans alone, got 9"),
        ({"options": "xy"}, r"'options' must be a list of strings, got 'xy'"),
        ({"options": ["x", 2]}, r"'options' must be a list of strings"),
        ({"options": ["x", " "]}, r"an option must not be empty"),
        ({"answer": "C"}, r"'answer' must be a letter of AB, got 'C'"),
        ({"answer": "b"}, r"'answer' must be a letter of AB, got 'b'"),
        ({"answer": ""}, r"'answer' must be a letter of AB, got ''"),
        ({"answer": 1}, r"'answer' must be a letter of AB, got 1"),
        ({"spans": [[5, 2]]}, r"start <= end.*got \[5.0, 2.0\]"),
        ({"spans": [[1]]}, r"a span must be \[start, end\] in seconds"),
        ({"spans": [[0, float("nan")]]}, r"a span's time must be a number of seconds >= 0, got nan"),
        ({"spans": "1-2"}, r"'spans' must be a list"),
        ({"spans": None}, r"'spans' must be a list"),
    ],
)
def test_a_wrong_row_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"train_dataset, row 1: .*{message}.*\(1 of 3 rows break a rule\)"):
        _checked(ROW, {**ROW, **change}, ROW)


def test_datasets_are_checked_as_lists_are() -> None:
    dataset = Dataset.from_list([ROW, {**ROW, "answer": "E"}, {**ROW, "answer": "F"}])
    with pytest.raises(ValueError, match=r"eval_dataset, row 1: .*letter of AB, got 'E'.*\(2 of 3 rows"):
        checked_dataset(dataset, "eval_dataset", SPECIAL)


def test_missing_columns_and_other_things_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the columns .*add answer"):
        _checked({key: value for key, value in ROW.items() if key != "answer"})
    with pytest.raises(ValueError, match=r"row 1: the key 'spans' is missing"):
        _checked(ROW, {key: value for key, value in ROW.items() if key != "spans"})
    for wrong in ([], "rows.json", [1, 2], None):
        with pytest.raises(TypeError, match=r"train_dataset must be a datasets.Dataset or a non-empty list of rows"):
            checked_dataset(wrong, "train_dataset", SPECIAL)  # type: ignore[arg-type]


def test_too_few_rows_for_a_step_are_an_error_that_says_both_numbers() -> None:
    check_num_rows(16, 16)
    with pytest.raises(ValueError, match=r"a step needs 16 rows, one per group, got 15 .*take fewer prompts"):
        check_num_rows(15, 16)
