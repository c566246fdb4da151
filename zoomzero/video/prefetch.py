"""Reading ahead: videos of the next samples are decoded in threads while the model works on this one.

Decoders release the interpreter lock, so threads suffice. Samples come out in the order they went in, whatever thread
was faster; at most `ahead` are in flight or waiting, which bounds memory. A sample whose video cannot be read comes out
as its `VideoError`, for the caller to skip and record; any other error is raised when its turn comes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from zoomzero.video.errors import VideoError

# Name of a run's list of skipped samples, in the run's folder.
SKIPPED_FILE = "skipped.jsonl"

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


class SkipLog:
    """Samples skipped for an unreadable video: one JSON line each, and an end when there are too many.

    A sample that comes again (in the next epoch) is neither written nor counted again.

    Args:
        file: where the lines go, e.g. runs/.../skipped.jsonl; appended to, made with its folder at the first line. None
            only counts.
        num_samples: samples of the run.
        max_skipped_fraction: share of them that may be skipped.
    """

    def __init__(
        self, file: str | os.PathLike[str] | None, num_samples: int, max_skipped_fraction: float = 0.05
    ) -> None:
        check_skipped_fraction("SkipLog", max_skipped_fraction)
        self.file = None if file is None else Path(file)
        self.num_samples = num_samples
        self.max_skipped_fraction = max_skipped_fraction
        self._seen: set[tuple[str, str]] = set()

    @property
    def num_skipped(self) -> int:
        """Distinct samples skipped so far."""
        return len(self._seen)

    def record(self, sample: str, error: VideoError) -> None:
        """Write down that `sample` (what tells it from the others on its video) is skipped.

        Raises:
            VideoError: more samples are skipped than allowed; names the file of this one and where the others stand.
        """
        if (sample, error.path) in self._seen:
            return
        self._seen.add((sample, error.path))
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            line = {"sample": sample, "path": error.path, "reason": error.reason}
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.num_skipped > self.max_skipped_fraction * self.num_samples:
            place = "" if self.file is None else f"; see {self.file}"
            raise VideoError(
                error.path,
                f"{error.reason}; {self.num_skipped} of {self.num_samples} samples have no readable video, more than "
                f"max_skipped_fraction={self.max_skipped_fraction} allows{place}",
            ) from error


def check_skipped_fraction(where: str, fraction: float) -> None:
    """ValueError unless the share of samples that may be skipped is in [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"{where}: max_skipped_fraction must be in [0, 1], got {fraction}; 0.05 is usual")
