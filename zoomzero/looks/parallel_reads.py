"""Frames of the next few looks, read by threads while the caller works on this one.

Decoders work in processes of their own (or release the interpreter lock), so threads suffice. All caches belong to the
caller's thread: a thread turns frames of an open video into patches, whose values do not depend on where that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

from zoomzero.budget import FramePlan
from zoomzero.patches import VideoPatches
from zoomzero.video import Video

THREAD_NAME = "zoomzero-look"


class ParallelReads:
    """Frames by key that are being read, or were and wait to be taken; belongs to one thread.

    Args:
        read: frames of a plan of an open video, as patches.
        num_threads: looks read at the same time; 1 leaves all reading to the caller. One more may wait to be taken.
    """

    def __init__(self, read: Callable[[Video, FramePlan], VideoPatches], num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError(f"ParallelReads: num_threads must be at least 1, got {num_threads}; 2 is a good start")
        self._read = read
        self._num_threads = num_threads
        self._reads: dict[Hashable, Future[VideoPatches | None]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __contains__(self, key: Hashable) -> bool:
        """Whether the frames are being read or wait."""
        return key in self._reads

    @property
    def has_room(self) -> bool:
        """Whether more may be submitted: frames at the published budget are 150 MB a look."""
        return self._num_threads > 1 and len(self._reads) <= self._num_threads

    def submit(self, key: Hashable, video: Video, plan: FramePlan) -> None:
        """Start reading a plan's frames; the video stays the caller's, who may close it meanwhile."""
        self._pool = self._pool or ThreadPoolExecutor(self._num_threads, thread_name_prefix=THREAD_NAME)
        self._reads[key] = self._pool.submit(self._read_one, video, plan)

    def keep(self, key: Hashable, patches: VideoPatches) -> None:
        """Frames that are there already, to be taken in their turn."""
        self._reads[key] = Future()
        self._reads[key].set_result(patches)

    def _read_one(self, video: Video, plan: FramePlan) -> VideoPatches | None:
        try:
            return self._read(video, plan)
        except ValueError:
            if video.is_closed:
                # A bounded cache has let go of it; the caller opens it again.
                return None
            raise

    def take(self, key: Hashable) -> VideoPatches | None:
        """The frames, when they are read; None where the caller has to read them.

        Raises:
            VideoError: they cannot be read.
        """
        future = self._reads.pop(key, None)
        return None if future is None or future.cancel() else future.result()

    def clear(self) -> None:
        """Forget what nobody took; waits for what is being read."""
        for future in self._reads.values():
            if not future.cancel():
                future.exception()
        self._reads.clear()

    def close(self) -> None:
        """Forget everything and end the threads. A later `submit` starts anew."""
        self.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
