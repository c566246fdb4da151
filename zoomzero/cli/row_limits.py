"""The options about annotation rows that break a rule, which `train` and `eval` share."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from zoomzero.limits import MAX_BAD_FRACTION
from zoomzero.text import escaped


def add_row_limits(command: Any) -> None:
    """--max-bad-fraction and --strict."""
    command.add_argument(
        "--max-bad-fraction", type=float, default=MAX_BAD_FRACTION, metavar="SHARE",
        help="stop when more than this share of the rows break a rule; they are left out (%(default)s)",
    )  # fmt: skip
    command.add_argument("--strict", action="store_true", help="stop where any row breaks a rule")


def row_limits(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments for `load_annotations` and `load_benchmark`: the options, and rows that are left out are listed."""
    return {
        "max_bad_fraction": options.max_bad_fraction,
        "strict": options.strict,
        "on_bad_row": lambda row: print(f"left out: {escaped(str(row))}", file=sys.stderr),
    }
