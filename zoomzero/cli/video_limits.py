"""The options about unreadable videos, which `train` and `eval` share."""

from __future__ import annotations

from typing import Any

from zoomzero.limits import MAX_SKIPPED_FRACTION, TIME_LIMIT_SECONDS


def add_video_limits(command: Any) -> None:
    """--max-skipped-fraction and --time-limit."""
    command.add_argument(
        "--max-skipped-fraction", type=float, default=MAX_SKIPPED_FRACTION, metavar="SHARE",
        help="stop when the videos of more than this share of the questions are unreadable (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT_SECONDS, metavar="SECONDS",
        help="stop a decoder that gives no sign of life for so long and skip its video; 0 decodes in this process "
        "(%(default)g)",
    )  # fmt: skip
