"""Reading video: exact frames at given times, in bounded memory, with errors that name the file and the cause."""

from __future__ import annotations

import importlib.util
import logging

import torch

from zoomzero.limits import NUM_DECODERS
from zoomzero.video.base import Video
from zoomzero.video.errors import VideoError
from zoomzero.video.guarded import GuardedVideo
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import OpenOptions, Source

__all__ = ["Video", "VideoError", "open_video"]

log = logging.getLogger(__name__)


def open_video(
    source: Source,
    backend: str = "auto",
    *,
    device: str | torch.device | None = None,
    time_limit: float | None = None,
    num_decoders: int = NUM_DECODERS,
    num_threads: int = 0,
    max_pixels: int = OpenOptions.max_pixels,
) -> Video:
    """Open a video and read its frame table; hardly any frame is decoded.

    Args:
        source: path, `file://` address, bytes or seekable binary file object.
        backend: "pyav" decodes on the CPU; "dali" on the GPU, or on the CPU for VP8, VP9 and motion JPEG; "auto" is
            DALI where a GPU and DALI are there and it can decode the file, else PyAV (said in the log). Frames are
            what a player shows: turned and mirrored as the file says, with square pixels (an anamorphic 720x576 gives
            768x576 or 1024x576), transparent ones on black, PQ and HLG in the range of an ordinary display, and all of
            the first one's size, those of another letterboxed.
        device: where DALI decodes and leaves frames; None is the current GPU, or the CPU without one. PyAV's frames are
            on the CPU always.
        time_limit: None reads in this process. A number of seconds (`zoomzero.limits.TIME_LIMIT_SECONDS` is usual) is
            for files one does not trust, which can hang or crash a decoder: PyAV then works in another process, which
            is killed when it gives no sign of life for that long. Where DALI decodes, the file is opened, its table
            read and its first frame decoded in that process first; DALI itself cannot be stopped, so backend "pyav" is
            the one that is guarded throughout.
        num_decoders: with a time limit, processes that the guarded videos of this process may share.
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
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    tries_dali = backend == "dali" or (backend == "auto" and target.type != "cpu" and has_dali)
    probe = (
        PyAVVideo(source, options) if time_limit is None else GuardedVideo(source, options, time_limit, num_decoders)
    )
    if not tries_dali:
        return probe
    try:
        return _with_dali(source, probe, target, keep_probe=backend == "auto")
    except BaseException:
        probe.close()
        raise


def _with_dali(source: Source, probe: PyAVVideo | GuardedVideo, target: torch.device, *, keep_probe: bool) -> Video:
    """The video decoded by DALI; where that cannot be, `probe` itself if it may be kept, else VideoError."""
    from zoomzero.video.dali import DaliVideo

    try:
        video = DaliVideo(source, probe, target)
    except VideoError as error:
        if not keep_probe:
            raise
        log.info("%s; reading it with PyAV", error)
        return probe
    probe.close()
    return video
