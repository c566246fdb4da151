"""Reading video: exact frames at given times, in bounded memory, with errors that name the file and the cause."""

from __future__ import annotations

import importlib.util
import logging

import torch

from zoomzero.video.base import Video
from zoomzero.video.errors import VideoError
from zoomzero.video.guarded import DEFAULT_TIME_LIMIT_SECONDS, GuardedVideo
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import OpenOptions, Source

__all__ = ["DEFAULT_TIME_LIMIT_SECONDS", "Video", "VideoError", "open_video"]

log = logging.getLogger(__name__)


def open_video(
    source: Source,
    backend: str = "auto",
    *,
    device: str | torch.device | None = None,
    time_limit: float | None = None,
    num_threads: int = 0,
    max_pixels: int = 8192 * 8192,
) -> Video:
    """Open a video and read its frame table; hardly any frame is decoded.

    Args:
        source: path, bytes or seekable binary file object.
        backend: "pyav" decodes on the CPU; "dali" on the GPU, or on the CPU for VP8, VP9 and motion JPEG; "auto" is
            DALI where a GPU and DALI are there and it can decode the file, else PyAV (said in the log).
        device: where DALI decodes and leaves frames; None is the current GPU, or the CPU without one. PyAV's frames are
            on the CPU always.
        time_limit: None decodes in this process. A number of seconds (DEFAULT_TIME_LIMIT_SECONDS is usual) decodes with
            PyAV in another process that is killed when it gives no sign of life for that long: for files one does not
            trust, which can hang or crash a decoder.
        num_threads: decoder threads on the CPU; 0 lets FFmpeg choose.
        max_pixels: files that claim a larger width * height are refused.

    Returns:
        A `Video`; use it as a context manager or close it.

    Raises:
        VideoError: missing, empty, unreadable, no video, or nothing decodes; names the file and the cause.
        ImportError: backend "dali" without DALI.
        ValueError: unknown backend.
        TypeError: source of another kind.
    """
    options = OpenOptions(num_threads, max_pixels)
    if backend not in ("auto", "dali", "pyav"):
        raise ValueError(f"open_video: backend must be 'auto', 'pyav' or 'dali', got {backend!r}; 'auto' chooses")
    if time_limit is not None:
        if backend == "dali":
            raise ValueError("open_video: time_limit guards the PyAV back end only, got backend 'dali'; leave one out")
        return GuardedVideo(source, options, time_limit)
    if backend == "pyav":
        return PyAVVideo(source, options)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if backend == "auto" and (target.type == "cpu" or importlib.util.find_spec("nvidia.dali") is None):
        return PyAVVideo(source, options)
    from zoomzero.video.dali import DaliVideo

    try:
        return DaliVideo(source, options, target)
    except VideoError as error:
        if backend == "dali":
            raise
        log.info("%s; reading it with PyAV", error)
        return PyAVVideo(source, options)
