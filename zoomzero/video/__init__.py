"""Reading video: exact frames at given times, in bounded memory, with errors that name the file and the cause."""

from __future__ import annotations

import importlib.util
import logging

import torch

from zoomzero.video.base import Video
from zoomzero.video.errors import VideoError
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import OpenOptions, Source

__all__ = ["Video", "VideoError", "open_video"]

log = logging.getLogger(__name__)


def open_video(
    source: Source,
    backend: str = "auto",
    *,
    device: str | torch.device | None = None,
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
    if backend == "pyav":
        return PyAVVideo(source, options)
    if backend not in ("auto", "dali"):
        raise ValueError(f"open_video: backend must be 'auto', 'pyav' or 'dali', got {backend!r}; 'auto' chooses")
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
