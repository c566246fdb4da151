"""The options about unreadable videos, which `train` and `eval` share."""

from __future__ import annotations

from typing import Any


def add_video_limits(command: Any) -> None:
    """--max-skipped-fraction and --time-limit."""
    command.add_argument(
        "--max-skipped-fraction", type=float, default=0.05, metavar="SHARE",
        help="stop when the videos of more than this share of the questions are unreadable (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--time-limit", type=float, default=120.0, metavar="SECONDS",
        help="stop a decoder that gives no sign of life for so long and skip its video; 0 decodes in this process "
        "(%(default)g)",
    )  # fmt: skip
