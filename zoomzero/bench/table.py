"""The table of `zoomzero bench`, and its comparison with an earlier run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str]

# A ratio within this much of 1 is what a machine does from one run to the next.
NOISE = 0.05
GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"


def read_old(path: Path) -> dict[str, Any]:
    """A file that `--json` wrote.

    Raises:
        ValueError: it is not one.
    """
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        medians = [row.get("median_ms", 0.0) + 0.0 for row in old["rows"] if key_of(row)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--compare: {path} must be a file that `zoomzero bench --json` wrote, got {error!r}"
        ) from error
    if not medians:
        raise ValueError(f"--compare: {path} must hold rows, got none; measure again with --json")
    return old


def key_of(row: Row) -> Key:
    """What names a row in every run."""
    return row["op"], row["size"], row["candidate"]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two runs unequal besides the code."""
    pairs = {"device": (old.get("device"), new["device"])}
    for part in ("machine", "versions"):
        theirs, ours = old.get(part, {}), new[part]
        pairs |= {name: (theirs.get(name), ours[name]) for name in ours if name != "zoomzero"}
    return [f"{name} {before} -> {now}" for name, (before, now) in pairs.items() if before != now]


class Table:
    """Prints case by case as they come; with the rows of an earlier run, their ratios too."""

    def __init__(self, old_rows: Sequence[Row] | None = None, colour: bool | None = None) -> None:
        """colour: unless told, where a terminal is and NO_COLOR is not set."""
        self._old = None if old_rows is None else {key_of(row): row for row in old_rows}
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ if colour is None else colour

    def show(self, rows: Sequence[Row]) -> None:
        """Print the rows of one case."""
        print(f"\n{rows[0]['op']}  ·  {rows[0]['size']}")
        for row in rows:
            print(f"  {row['candidate']:24}{self._figures(row)}".rstrip(), flush=True)

    def _figures(self, row: Row) -> str:
        if "median_ms" not in row:
            return row.get("error", "not measured")
        share = row["share_of_ceiling"]
        ratio = "" if row["candidate"] == "ours" else f"{row['times_ours']:.2f}x ours"
        figures = f"{_shown(row['median_ms'])} ms  {_shown(row['p20_ms'])} to {_shown(row['p80_ms'])}"
        ceiling = "" if share is None else f"{100 * share:.0f} % of the ceiling"
        return f"{figures}  {ratio:13}{ceiling:21}{self._ratio(row)}"

    def _ratio(self, row: Row) -> str:
        if self._old is None:
            return ""
        before = self._old.get(key_of(row), {}).get("median_ms")
        if not before:
            return "new"
        ratio = row["median_ms"] / before
        text = f"{ratio:.2f}x the old {_shown(before).strip()} ms"
        if not self._colour or abs(ratio - 1) <= NOISE:
            return text
        return f"{GREEN if ratio < 1 else RED}{text}{PLAIN}"


def _shown(milliseconds: float) -> str:
    return f"{milliseconds:8.3f}" if milliseconds < 10 else f"{milliseconds:8.1f}"
