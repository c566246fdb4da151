"""Reading ahead: videos of the next samples are decoded in threads while the model works on this one.

Decoders release the interpreter lock, so threads suffice. Samples come out in the order they went in, whatever thread
was faster; at most `ahead` are in flight or waiting, which bounds memory. A sample whose video cannot be read comes out
as its `VideoError`, for the caller to skip and record; any other error is raised when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from zoomzero.video.errors import VideoError

Sample = TypeVar("Sample")
Loaded = TypeVar("Loaded")


class Prefetcher(Generic[Sample, Loaded]):
    """Iterable over (sample, loaded or VideoError), in order. Each iteration starts over with its own threads.

    Args:
        samples: what to load; iterated lazily, in the thread that consumes.
        load: called in a thread, once a sample.
        num_threads: samples loaded at the same time.
        ahead: samples loaded or being loaded that the consumer has not taken yet.
        discard: called with what was loaded and never taken, when the consumer stops early (to close files).
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        load: Callable[[Sample], Loaded],
        *,
        num_threads: int = 2,
        ahead: int = 4,
        discard: Callable[[Loaded], None] | None = None,
    ) -> None:
        for name, value in (("num_threads", num_threads), ("ahead", ahead)):
            if value < 1:
                raise ValueError(f"Prefetcher: {name} must be at least 1, got {value}; leave the default")
        self._samples = samples
        self._load = load
        self._num_threads = num_threads
        self._ahead = ahead
        self._discard = discard

    def __iter__(self) -> Generator[tuple[Sample, Loaded | VideoError]]:
        samples = iter(self._samples)
        waiting: deque[tuple[Sample, Future[Loaded | VideoError]]] = deque()
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="zoomzero-load")
        try:
            while True:
                while len(waiting) < self._ahead:
                    try:
                        sample = next(samples)
                    except StopIteration:
                        break
                    waiting.append((sample, pool.submit(self._load_one, sample)))
                if not waiting:
                    return
                sample, future = waiting.popleft()
                yield sample, future.result()
        finally:
            # Also when the consumer stops early or fails: no thread outlives the iteration.
            pool.shutdown(wait=True, cancel_futures=True)
            for _, future in waiting:
                self._drop(future)

    def _drop(self, future: Future[Loaded | VideoError]) -> None:
        if self._discard is None or future.cancelled() or future.exception() is not None:
            return
        loaded = future.result()
        if not isinstance(loaded, VideoError):
            self._discard(loaded)

    def _load_one(self, sample: Sample) -> Loaded | VideoError:
        try:
            return self._load(sample)
        except VideoError as error:
            return error
