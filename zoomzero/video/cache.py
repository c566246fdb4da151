"""A few opened videos kept for the next question, so that a file's frame table is read once, not once a question."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zoomzero.closable import Closable
from zoomzero.video.base import Video
from zoomzero.video.errors import VideoError
from zoomzero.video.source import FileState, local_path

# A path with what tells a file from one that replaced it: modification time in ns, size in bytes.
Key = tuple[str, int, int]


class VideoCache(Closable):
    """Least recently used opened videos, at most `max_videos` of them. Safe to use from several threads.

    Args:
        opener: opens a path, e.g. `open_video`.
        max_videos: videos kept open while nobody uses them; each costs a file handle and a few decoded frames.
    """

    def __init__(self, opener: Callable[[str], Video], max_videos: int = 8) -> None:
        if max_videos < 1:
            raise ValueError(f"VideoCache: max_videos must be at least 1, got {max_videos}; 8 is a good start")
        self._opener = opener
        self._max_videos = max_videos
        self._lock = threading.Lock()
        self._idle: OrderedDict[Key, Video] = OrderedDict()
        self._closed = False

    def __len__(self) -> int:
        """Videos that are open and in nobody's hands."""
        return len(self._idle)

    @contextmanager
    def use(self, path: str | os.PathLike[str]) -> Iterator[Video]:
        """The opened video, for the length of a `with` block.

        Two users of one path at a time get two videos, so that neither moves the other's decoder.

        Raises:
            VideoError: the file cannot be read; nothing is kept of it.
            ValueError: the cache is closed.
        """
        key = _key(path)
        with self._lock:
            if self._closed:
                raise ValueError("VideoCache: the cache must be open, got a closed one; make a new one")
            video = self._idle.pop(key, None)
        video = video or self._opener(key[0])
        try:
            yield video
        except BaseException:
            # It may be in the middle of anything; the next user gets a fresh one.
            video.close()
            raise
        self._put_back(key, video)

    def _put_back(self, key: Key, video: Video) -> None:
        with self._lock:
            surplus = [video] if self._closed else [v for v in [self._idle.pop(key, None)] if v is not None]
            if not self._closed:
                self._idle[key] = video
                while len(self._idle) > self._max_videos:
                    surplus.append(self._idle.popitem(last=False)[1])
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Close all idle videos; those in use are closed when they come back."""
        with self._lock:
            self._closed = True
            videos = list(self._idle.values())
            self._idle.clear()
        for video in videos:
            video.close()


def _key(path: str | os.PathLike[str]) -> Key:
    name = os.fspath(path)
    try:
        state = FileState.of(str(local_path(name)))
    except (OSError, ValueError, VideoError):
        # The opener says what is wrong with it.
        return name, 0, 0
    return name, state.changed_ns, state.size
