"""The options about unreadable videos, which the commands share."""

from __future__ import annotations

from typing import Any

from zoomzero.limits import MAX_SKIPPED_FRACTION, TIME_LIMIT_SECONDS


def add_video_limits(command: Any) -> None:
    """--max-skipped-fraction and --time-limit."""
    command.add_argument(
        "--max-skipped-fraction", type=float, default=MAX_SKIPPED_FRACTION, metavar="SHARE",
        help="stop when the videos of more than this share of the questions are unreadable (%(default)s)",
    )  # fmt: skip
    add_time_limit(command, "skip its video")


def add_time_limit(command: Any, consequence: str) -> None:
    """--time-limit; consequence: what happens to the video of a decoder that hangs."""
    command.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT_SECONDS, metavar="SECONDS",
        help="stop a decoder that gives no sign of life for so long and "
        f"{consequence}; 0 decodes in this process (%(default)g)",
    )  # fmt: skip
