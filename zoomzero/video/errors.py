"""The one error of reading video."""

from __future__ import annotations

import av

# What PyAV raises while it reads a damaged file. IndexError: a stream its header did not announce turned up later.
READ_ERRORS = (av.FFmpegError, EOFError, IndexError)


class VideoError(Exception):
    """A video cannot be read. Names the file and the cause, so that a caller can skip it and say why.

    Attributes:
        path: the file as it was asked for.
        reason: the cause in words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
