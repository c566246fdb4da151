"""Reading annotation files as rows: JSON, JSON Lines, CSV and parquet, from files of any origin.

Only regular files of bounded size are read; numbers of any length, broken lines and odd encodings lead to errors that
name the file, never to a crash or to silent loss.
"""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Far above any published annotation file, and small enough to parse in memory.
MAX_FILE_BYTES = 1 << 30
# Digits of a JSON number that are still read as one: 10^40 seconds are nobody's, and float() takes them.
MAX_DIGITS = 40

# Suffixes that the releases and the usual downloads give to videos, the usual one first.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


class BrokenLine:
    """A line of a JSON Lines file that is not JSON."""

    def __init__(self, text: str, reason: str) -> None:
        self.text = text
        self.reason = reason


def read_bytes(file: Path) -> bytes:
    """The file's content.

    Raises:
        ValueError: not a regular file, or too large.
        OSError: the file cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = next(
            name
            for test, name in (
                (stat.S_ISDIR, "a folder"), (stat.S_ISCHR, "a character device"), (stat.S_ISBLK, "a block device"),
                (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (bool, "something else"),
            )
            if test(status.st_mode)
        )  # fmt: skip
        raise ValueError(f"{file}: an annotation file must be a regular file, got {kind}; check the path")
    with file.open("rb") as source:
        # Files that grow or lie about their size are cut here.
        data = source.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"{file}: annotation files are limited to {MAX_FILE_BYTES} bytes, got {max(status.st_size, len(data))}; "
            "split the file"
        )
    return data


def read_json_rows(file: Path) -> list[Any]:
    """Rows of a JSON list or of JSON Lines, with or without a byte-order mark; broken lines become `BrokenLine`.

    Raises:
        ValueError: the file is neither, or holds no row.
        OSError: the file cannot be read.
    """
    text = _decoded(file)
    rows: Any = [_line(line) for line in text.split("\n") if line.strip()] if text.lstrip().startswith("{") else []
    if not rows or not any(isinstance(row, dict) for row in rows) or _is_object(text, rows):
        rows = _parsed(file, text)
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f"{file}: must be a non-empty JSON list of questions or JSON Lines, got "
            f"{'an empty list' if rows == [] else type(rows).__name__}; check the path"
        )
    return rows


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON object whose keys stand once each.

    Raises:
        ValueError: something else, or a key that stands twice with different values.
        OSError: the file cannot be read.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found and found[key] != value:
                raise ValueError(f"the key '{key}' stands twice with different values; keep the right one")
            found[key] = value
        return found

    try:
        content = json.loads(_decoded(file), parse_int=_whole, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: must be a UTF-8 JSON object, got {error}; check the file") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: must be a non-empty JSON object, got {type(content).__name__}; check the path")
    return content


def read_csv_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file with a header line.

    Raises:
        ValueError: the file is no CSV or has no row.
        OSError: the file cannot be read.
    """
    try:
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(_decoded(file), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"{file}: must be CSV with a header line, got {error}; check the file") from error
    if not rows:
        raise ValueError(f"{file}: must be CSV with a header line and at least one row, got none; check the file")
    return rows


def read_parquet_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file.

    Raises:
        ValueError: the file is no parquet or has no row.
        ImportError: pyarrow is not installed.
        OSError: the file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f'{file}: reading parquet needs pyarrow; pip install "zoomzero[eval]"') from error
    data = read_bytes(file)
    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    # Some damage comes as OSError, though nothing is read from disk here.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: must be a parquet file, got {error}; fetch it again") from error
    if not rows:
        raise ValueError(f"{file}: must hold at least one row, got none; fetch it again")
    return rows


def first_existing(candidates: Iterator[Path] | list[Path], source: str) -> Path:
    """The first of the files that exists.

    Raises:
        FileNotFoundError: none does; names them and where to get them.
    """
    tried = list(candidates)
    for file in tried:
        if file.exists():
            return file
    raise FileNotFoundError(f"{' or '.join(str(file) for file in tried)}: no such file; get it from {source}")


def video_file(folder: Path, name: str) -> str:
    """Path of a video whose suffix the annotations leave out: the one that exists, else with .mp4."""
    paths = [folder / f"{name}{suffix}" for suffix in VIDEO_SUFFIXES]
    return str(next((path for path in paths if path.exists()), paths[0]))


def _decoded(file: Path) -> str:
    data = read_bytes(file)
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: must be UTF-8 text, got {error}; check the path") from error


def _parsed(file: Path, text: str) -> Any:
    try:
        return json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: must be a UTF-8 JSON list of questions or JSON Lines, got {error}; check the path"
        ) from error


def _is_object(text: str, lines: list[Any]) -> bool:
    """Whether a text whose lines are broken JSON is one object over all of them."""
    if not isinstance(lines[0], BrokenLine):
        return False
    try:
        return isinstance(json.loads(text, parse_int=_whole), dict)
    except (ValueError, RecursionError):
        return False


def _line(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        return BrokenLine(text, str(error))


def _whole(digits: str) -> int | str:
    """A JSON whole number; one of absurd length stays text, so that the row's own check names it."""
    return int(digits) if len(digits) <= MAX_DIGITS else digits
