"""Reading ahead: videos of the next samples are decoded in threads while the model works on this one.

Decoders release the interpreter lock, so threads suffice. Samples come out in the order they went in, whatever thread
was faster; at most `ahead` are in flight or waiting, which bounds memory. A sample whose video cannot be read comes out
as its `VideoError`, for the caller to skip and record; any other error is raised when its turn comes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
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
    """

    def __init__(
        self, samples: Iterable[Sample], load: Callable[[Sample], Loaded], *, num_threads: int = 2, ahead: int = 4
    ) -> None:
        for name, value in (("num_threads", num_threads), ("ahead", ahead)):
            if value < 1:
                raise ValueError(f"Prefetcher: {name} must be at least 1, got {value}; leave the default")
        self._samples = samples
        self._load = load
        self._num_threads = num_threads
        self._ahead = ahead

    def __iter__(self) -> Iterator[tuple[Sample, Loaded | VideoError]]:
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

    def _load_one(self, sample: Sample) -> Loaded | VideoError:
        try:
            return self._load(sample)
        except VideoError as error:
            return error


class SkipLog:
    """Samples skipped for an unreadable video: one JSON line each, and an end when there are too many.

    Args:
        file: where the lines go, e.g. runs/.../skipped.jsonl; appended to, made with its folder at the first line.
        num_samples: samples of the run.
        max_skipped_fraction: share of them that may be skipped.
    """

    def __init__(self, file: str | os.PathLike[str], num_samples: int, max_skipped_fraction: float = 0.05) -> None:
        if not 0 <= max_skipped_fraction <= 1:
            raise ValueError(
                f"SkipLog: max_skipped_fraction must be in [0, 1], got {max_skipped_fraction}; 0.05 is usual"
            )
        self.file = Path(file)
        self.num_samples = num_samples
        self.max_skipped_fraction = max_skipped_fraction
        self.num_skipped = 0

    def record(self, sample: str, error: VideoError) -> None:
        """Write down that `sample` is skipped.

        Raises:
            VideoError: more samples are skipped than allowed; names the file of this one and where the others stand.
        """
        self.num_skipped += 1
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = {"sample": sample, "path": error.path, "reason": error.reason}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.num_skipped > self.max_skipped_fraction * self.num_samples:
            raise VideoError(
                error.path,
                f"{error.reason}; {self.num_skipped} of {self.num_samples} samples have no "
                f"readable video, more than max_skipped_fraction={self.max_skipped_fraction} "
                f"allows; see {self.file}",
            ) from error
