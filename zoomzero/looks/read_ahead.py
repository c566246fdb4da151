"""Reading the next batch's videos in background threads while the model works on this one.

The look-ahead is the data loader's own: accelerate's loader fetches a batch before it hands out the one before it, so
rows reach the collator, which submits their videos here, one batch early. All caches belong to the main thread; the
threads only open files and turn frames into patches, whose values do not depend on where they were computed.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from zoomzero.limits import NUM_DECODERS
from zoomzero.patches import VideoPatches
from zoomzero.video import Video

THREAD_NAME = "zoomzero-ahead"


@dataclass(frozen=True)
class ReadVideo:
    """A video that was read before its turn."""

    video: Video
    """Open, or decoded into memory."""
    coarse: VideoPatches | None
    """What the coarse pass sees of it, where that was wanted."""


# Asks for bytes of memory; False where the bound is reached.
Reserve = Callable[[int], bool]
# Reads a video; None where it may not have the memory.
Read = Callable[[Reserve], ReadVideo | None]


@dataclass
class _Item:
    turn: int
    num_bytes: int = 0
    future: Future[ReadVideo | None] = field(init=False)


class ReadAhead:
    """Videos by path that are being read, or were and wait for their batch; together at most `max_bytes`.

    `submit`, `take`, `discard` and `close` belong to one thread. What is submitted in one call is one batch; batches
    are taken in the order they were submitted, so that taking of one drops what is left of those before it.
    """

    def __init__(self, max_bytes: int, num_threads: int = NUM_DECODERS) -> None:
        self._max_bytes = max_bytes
        self._num_threads = num_threads
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._items: dict[str, _Item] = {}
        self._turn = 0
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._items)

    def submit(self, reads: Iterable[tuple[str, Read]]) -> None:
        """Start reading the videos of a batch that are not being read yet."""
        self._turn += 1
        for path, read in reads:
            if path in self._items:
                continue
            self._pool = self._pool or ThreadPoolExecutor(self._num_threads, thread_name_prefix=THREAD_NAME)
            item = _Item(self._turn)
            item.future = self._pool.submit(self._run, read, item)
            self._items[path] = item

    def _run(self, read: Read, item: _Item) -> ReadVideo | None:
        try:
            return read(lambda num_bytes: self._reserve(item, num_bytes))
        except BaseException:
            self._free(item)
            raise

    def _reserve(self, item: _Item, num_bytes: int) -> bool:
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._num_bytes += num_bytes
            item.num_bytes += num_bytes
            return True

    def _free(self, item: _Item) -> None:
        with self._lock:
            self._num_bytes -= item.num_bytes
            item.num_bytes = 0

    def take(self, path: str) -> ReadVideo | None:
        """The video, when it was read or is being read; None where the caller reads it faster itself.

        Raises:
            VideoError: it cannot be read.
        """
        item = self._items.pop(path, None)
        if item is None:
            return None
        self.discard([key for key, other in self._items.items() if other.turn < item.turn])
        if item.future.cancel():
            return None
        try:
            return item.future.result()
        finally:
            self._free(item)

    def discard(self, paths: Iterable[str]) -> None:
        """Drop videos nobody will take; those being read are closed when they are done."""
        for path in paths:
            item = self._items.pop(path, None)
            if item is not None and not item.future.cancel():
                item.future.add_done_callback(functools.partial(self._close, item))

    def _close(self, item: _Item, future: Future[ReadVideo | None]) -> None:
        self._free(item)
        read = None if future.exception() is not None else future.result()
        if read is not None:
            read.video.close()

    def close(self) -> None:
        """Drop everything and end the threads. A later `submit` starts anew."""
        self.discard(list(self._items))
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
