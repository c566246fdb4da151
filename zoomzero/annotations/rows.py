"""Rows become samples: each field is checked, rows that break a rule are left out, listed, and limited in number."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomzero.annotations.files import BrokenLine
from zoomzero.annotations.sample import Sample
from zoomzero.intervals import Span
from zoomzero.limits import MAX_BAD_FRACTION, MAX_QUESTION_CHARACTERS
from zoomzero.prompts import OPTION_LETTERS

logger = logging.getLogger("zoomzero.annotations")

# Published files round the duration and the spans separately: half a second of tolerance, no more.
SPAN_TOLERANCE_SECONDS = 0.5

# "(A) x", "A. x", "A) x", "A: x".
_LABELLED = re.compile(r"(?:\(([A-H])\)|([A-H])[.):])\s*(.*)", re.DOTALL)
_PARENTHESISED = re.compile(r"\(([A-H])\)\s*(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that was left out.

    Attributes:
        file: the annotation file.
        row: its number, counted from 0; in JSON Lines of the lines that are not empty.
        rule: the rule it breaks.
        value: what stands there instead, shortened.
        remedy: what to do about it.
    """

    file: str
    row: int
    rule: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.rule}, got {self.value}; {self.remedy}"


class RuleError(ValueError):
    """A field breaks a rule; `RowReader` adds file and row."""

    def __init__(self, rule: str, value: Any, remedy: str) -> None:
        self.rule = rule
        self.value = f"{value!r:.80}"
        self.remedy = remedy
        super().__init__(f"{rule}, got {self.value}; {remedy}")


class RowReader:
    """Turns the rows of one or several files into samples.

    Args:
        max_bad_fraction: share of all rows that may break a rule; they are left out.
        strict: allow none.
        on_bad_row: called with each row left out; logged as a warning unless told.
    """

    def __init__(
        self,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        strict: bool = False,
        on_bad_row: Callable[[BadRow], None] | None = None,
    ) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(
                f"annotations: max_bad_fraction must be in [0, 1], got {max_bad_fraction}; {MAX_BAD_FRACTION} is usual"
            )
        self._limit = 0.0 if strict else max_bad_fraction
        self._on_bad_row = on_bad_row or (lambda row: logger.warning("left out: %s", row))
        self._num_rows = 0
        self._bad: list[BadRow] = []
        self._ids: set[str] = set()

    def read(self, file: Path, rows: Iterable[Any], convert: Callable[[Any, int], Sample]) -> list[Sample]:
        """Samples of a file's rows.

        Args:
            file: where the rows come from.
            rows: the rows as parsed.
            convert: makes a sample of a row and its number, or raises `RuleError`.
        """
        samples = []
        for number, row in enumerate(rows):
            self._num_rows += 1
            try:
                if isinstance(row, BrokenLine):
                    raise RuleError(f"a line must be JSON ({row.reason})", row.text, "restore the line")
                sample = convert(row, number)
                _check_lengths(sample)
                self._check_id(sample)
            except RuleError as error:
                bad = BadRow(str(file), number, error.rule, error.value, error.remedy)
                self._bad.append(bad)
                self._on_bad_row(bad)
            else:
                samples.append(sample)
        return samples

    def _check_id(self, sample: Sample) -> None:
        if not sample.question_id:
            return
        if sample.question_id in self._ids:
            raise RuleError("a question's name must stand once", sample.question_id, "delete one of the two rows")
        self._ids.add(sample.question_id)

    def finish(self) -> None:
        """End of the benchmark's files.

        Raises:
            ValueError: more rows are bad than allowed, or all of them; names the first.
        """
        if not self._bad:
            return
        if len(self._bad) > self._limit * self._num_rows or len(self._bad) == self._num_rows:
            raise ValueError(
                f"{self._bad[0]} ({len(self._bad)} of {self._num_rows} rows break a rule, more than "
                f"max_bad_fraction={self._limit:g} allows)"
            )


def _check_lengths(sample: Sample) -> None:
    for kind, asked in (("a question", sample.question), *(("an option", option) for option in sample.options)):
        if len(asked) > MAX_QUESTION_CHARACTERS:
            raise RuleError(f"{kind} must have at most {MAX_QUESTION_CHARACTERS} characters", len(asked), "shorten it")


def require_keys(file: Path, rows: Sequence[Any], keys: Iterable[str], source: str) -> None:
    """Check that a file has its format's keys at all; a row that lacks one is the row's own fault.

    Raises:
        ValueError: no row has one of the keys; names file, key and where to get a file with it.
    """
    for key in keys:
        if not any(isinstance(row, Mapping) and key in row for row in rows):
            raise ValueError(f"{file}: the key '{key}' is missing in all {len(rows)} rows; get the file from {source}")


def field(row: Any, key: str) -> Any:
    """Value of a key that must be there."""
    if not isinstance(row, Mapping):
        raise RuleError("a row must be an object", type(row).__name__, "see docs/evaluating.md for the formats")
    if key not in row:
        raise RuleError(f"the key '{key}' is missing", sorted(str(name) for name in row), "add it")
    return row[key]


def text(row: Any, key: str) -> str:
    """A text that is not empty, without the space around it."""
    value = field(row, key)
    if not isinstance(value, str) or not value.strip():
        raise RuleError(f"'{key}' must be a non-empty string", value, "correct it")
    return value.strip()


def name(row: Any, key: str) -> str:
    """A text or a whole number, as text: identifiers come as both. It may be part of a path, so it has no NUL."""
    value = field(row, key)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip() or "\0" in str(value):
        raise RuleError(f"'{key}' must be a name or a number", value, "correct it")
    return str(value).strip()


def seconds(value: Any, what: str) -> float:
    """A time >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RuleError(f"{what} must be a number of seconds >= 0", value, "correct it")
    return float(value)


def duration(row: Any, key: str = "duration") -> float:
    """Length of the row's video, above 0."""
    length = seconds(field(row, key), f"'{key}'")
    if length == 0:
        raise RuleError(f"'{key}' must be above 0 seconds", 0, "read it from the video")
    return length


def spans(value: Any, key: str, length: float | None) -> tuple[Span, ...]:
    """True spans: pairs of seconds in order, inside the video where its length is known."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RuleError(f"'{key}' must be a list of [start, end]", value, "write [[1.0, 2.5]]")
    checked = []
    for span in value:
        if not isinstance(span, Sequence) or isinstance(span, str) or len(span) != 2:
            raise RuleError("a span must be [start, end] in seconds", span, "correct it")
        start, end = (seconds(time, "a span's time") for time in span)
        if start > end or (length is not None and end > length + SPAN_TOLERANCE_SECONDS):
            where = "" if length is None else f" in {length:g} s"
            raise RuleError(f"a span must have start <= end <= duration{where}", [start, end], "correct it")
        checked.append((start, end))
    return tuple(checked)


def options(value: Any, key: str = "options", *, allow_empty: bool = False) -> tuple[str, ...]:
    """Bare option texts from "(A) x", "A. x", "A) x", "A: x" or "x".

    Labels are taken off where all options carry them, and "(A)" also where only some do: an option may well start with
    "A. " on its own. allow_empty: for releases that have options without a text.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise RuleError(f"'{key}' must be a list of strings", value, 'write ["(A) ...", ...]')
    if not 2 <= len(value) <= len(OPTION_LETTERS):
        raise RuleError(f"'{key}' must be 2 to {len(OPTION_LETTERS)} texts", len(value), "correct them")
    stripped = [item.strip() for item in value]
    pattern = _LABELLED if all(_LABELLED.fullmatch(item) for item in stripped) else _PARENTHESISED
    texts = []
    for letter, item in zip(OPTION_LETTERS, stripped, strict=False):
        labelled = pattern.fullmatch(item)
        label = next((group for group in labelled.groups()[:-1] if group), None) if labelled else None
        if label not in (None, letter):
            raise RuleError(f"option {letter} is labelled ({label})", item, "sort the options by their letters")
        bare = labelled[labelled.lastindex or 0].strip() if labelled else item
        if not bare and not allow_empty:
            raise RuleError(f"option {letter} must not be empty", item, "write its text")
        texts.append(bare)
    return tuple(texts)


def letter_answer(value: Any, choices: Sequence[str], key: str = "answer") -> str:
    """Letter of the right option from "B", "b", "(B)", "B.", "B)" or, with its text, "(B) x"."""
    letter = _stated_letter(value, choices)
    if letter is None or letter not in OPTION_LETTERS[: len(choices)]:
        raise _unknown_answer(value, choices, key)
    return letter


def text_answer(value: Any, choices: Sequence[str], key: str = "answer") -> str:
    """Letter of the right option from its text; where two options have it the first, and `Sample.is_right` takes both.

    Differences of case, of space and of a final full stop count only where they tell options apart.
    """
    letter = _letter_of_text(value, choices)
    if letter is None:
        raise _unknown_answer(value, choices, key)
    return letter


def any_answer(value: Any, choices: Sequence[str], key: str = "answer") -> str:
    """Letter of the right option from a letter, the option's text, or its index from 0.

    A letter or a number that is also the text of another option is refused, unless written "(B)". Digits in quotation
    marks are an index only where no option has them as its text.
    """
    letters = OPTION_LETTERS[: len(choices)]
    by_text = _letter_of_text(str(value) if isinstance(value, int) else value, choices)
    stated = _stated_letter(value, choices)
    if isinstance(value, int) and not isinstance(value, bool):
        stated = letters[value] if 0 <= value < len(letters) else None
    elif stated is None and by_text is None and isinstance(value, str) and re.fullmatch("[0-9]", value.strip()):
        stated = letters[int(value)] if int(value) < len(letters) else None
    elif isinstance(value, str) and _PARENTHESISED.fullmatch(value.strip()):
        by_text = None
    if stated is not None and by_text is not None and stated != by_text:
        raise RuleError(
            f"'{key}' is the letter or index of one option and the text of another", value, f"write '({by_text})'"
        )
    letter = stated if stated is not None else by_text
    if letter is None or letter not in letters:
        raise _unknown_answer(value, choices, key)
    return letter


def _unknown_answer(value: Any, choices: Sequence[str], key: str) -> RuleError:
    return RuleError(
        f"'{key}' must be the letter of one of the {len(choices)} options or its text", value,
        f"use '(A)' to '({OPTION_LETTERS[len(choices) - 1]})'",
    )  # fmt: skip


def _stated_letter(value: Any, choices: Sequence[str]) -> str | None:
    """Letter of "B", "b", "(B)", "B." or "B)", or of "(B) x" where x is that option's text."""
    if not isinstance(value, str):
        return None
    if match := re.fullmatch(r"\(([A-Ha-h])\)|([A-Ha-h])[.):]?", value.strip()):
        return (match[1] or match[2]).upper()
    labelled = _LABELLED.fullmatch(value.strip())
    letter = (labelled[1] or labelled[2]) if labelled else None
    return letter if labelled and letter == _letter_of_text(labelled[3], choices) else None


def _letter_of_text(value: Any, choices: Sequence[str]) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    for form in (str.strip, _plain):
        for letter, choice in zip(OPTION_LETTERS, choices, strict=False):
            if form(choice) == form(value):
                return letter
    return None


def _plain(value: str) -> str:
    """Without differences of case, space and a final full stop."""
    return " ".join(value.split()).rstrip(".").casefold()
