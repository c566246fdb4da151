"""The training data: what a row must hold, checked for every row before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from zoomzero.annotations import rows
from zoomzero.annotations.rows import RuleError
from zoomzero.prompts import OPTION_LETTERS

COLUMNS = ("video", "question", "options", "answer", "spans")

Rows = Sequence[Mapping[str, Any]]


def checked_dataset(dataset: Dataset | Rows, name: str, special_tokens: Iterable[str]) -> Dataset:
    """A datasets.Dataset whose rows can be trained on; lists of rows are converted.

    special_tokens: of the tokenizer; a text that holds one would change its prompt's structure.

    Raises:
        TypeError: not a dataset.
        ValueError: a column is missing or a row breaks a rule; names the first such row and how many there are.
    """
    if not isinstance(dataset, Dataset) and (
        not isinstance(dataset, Sequence) or not dataset or not isinstance(dataset[0], Mapping)
    ):
        raise TypeError(
            f"ZoomZeroTrainer: {name} must be a datasets.Dataset or a non-empty list of rows, got "
            f"{type(dataset).__name__}; pass a list of dictionaries"
        )
    columns = dataset.column_names if isinstance(dataset, Dataset) else list(dataset[0])
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise ValueError(
            f"ZoomZeroTrainer: {name} must have the columns {', '.join(COLUMNS)}, got {', '.join(columns)}; "
            f"add {', '.join(missing)}"
        )
    _check_rows(
        dataset.select_columns(list(COLUMNS)) if isinstance(dataset, Dataset) else dataset, name, special_tokens
    )
    return dataset if isinstance(dataset, Dataset) else Dataset.from_list([dict(row) for row in dataset])


def _check_rows(dataset: Iterable[Any], name: str, special_tokens: Iterable[str]) -> None:
    tokens = tuple(special_tokens)
    first, num_bad, num_rows = None, 0, 0
    for number, row in enumerate(dataset):
        num_rows += 1
        try:
            _check_row(row, tokens)
        except RuleError as error:
            num_bad += 1
            first = first or f"row {number}: {error}"
    if first is not None:
        raise ValueError(f"ZoomZeroTrainer: {name}, {first} ({num_bad} of {num_rows} rows break a rule)")


def _check_row(row: Any, special_tokens: Sequence[str]) -> None:
    rows.text(row, "video")
    question = rows.text(row, "question")
    choices = rows.field(row, "options")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not all(isinstance(x, str) for x in choices):
        raise RuleError("'options' must be a list of strings", choices, "write the texts without letters")
    if choices and not 2 <= len(choices) <= len(OPTION_LETTERS):
        rule = f"'options' must be 2 to {len(OPTION_LETTERS)} texts, or none for spans alone"
        raise RuleError(rule, len(choices), "correct them")
    for text in (question, *choices):
        if not text.strip():
            raise RuleError("an option must not be empty", text, "write its text")
        if not _is_unicode(text):
            raise RuleError("a text must be valid Unicode", text, "remove the lone surrogate")
        for token in special_tokens:
            if token in text:
                raise RuleError(f"a text must not hold the special token {token}", text, "remove or rewrite it")
    answer, spans = rows.field(row, "answer"), rows.spans(rows.field(row, "spans"), "spans", None)
    if not choices:
        if answer != "" or not spans:
            rule = "a row without options must have spans and the answer ''"
            raise RuleError(rule, answer if spans else spans, "add the options, or the spans")
        return
    letters = OPTION_LETTERS[: len(choices)]
    if not isinstance(answer, str) or len(answer) != 1 or answer not in letters:
        raise RuleError(f"'answer' must be a letter of {letters}", answer, "name the right option by its letter")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_num_rows(num_rows: int, num_needed: int) -> None:
    """ValueError when a step needs more rows than there are: TRL's sampler would drop them all and train nothing."""
    if num_rows < num_needed:
        raise ValueError(
            f"ZoomZeroTrainer: a step needs {num_needed} rows, one per group, got {num_rows} in train_dataset; add "
            "rows or take fewer prompts per step"
        )
