"""Running a model over annotated samples."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from zoomzero.annotations import Sample
from zoomzero.answering.answer import Answer, AnswerOptions, Query
from zoomzero.answering.engine import MAX_IDLE_VIDEOS, Reading, ZoomZero
from zoomzero.evaluation.records import Asked, Evaluation, Run
from zoomzero.limits import MAX_NEW_TOKENS, MAX_SKIPPED_FRACTION, TIME_LIMIT_SECONDS
from zoomzero.video import VideoError, open_video
from zoomzero.video.cache import VideoCache
from zoomzero.video.prefetch import Prefetcher


def evaluate(
    engine: ZoomZero,
    samples: Sequence[Sample],
    *,
    strategy: str = "coarse_to_fine",
    budget_tokens: int | None = None,
    batch_size: int = 1,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_skipped_fraction: float = MAX_SKIPPED_FRACTION,
    time_limit: float | None = TIME_LIMIT_SECONDS,
    read_ahead: int | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answer all samples and measure; the videos of the next samples are read while the model works.

    Args:
        engine: the model.
        samples: from `load_benchmark` or `load_annotations`. Neighbours on one video share its coarse pass's frames.
        strategy, budget_tokens, max_new_tokens: as `ZoomZero.answer`.
        batch_size: samples that share a forward; results do not depend on it beyond rounding.
        max_skipped_fraction: share of samples whose video may be unreadable; they count as wrong and are listed.
        time_limit: seconds after which a decoder that gives no sign of life is stopped and its video is unreadable,
            None to decode in this process; see `open_video`.
        read_ahead: videos read before their turn, each held as its coarse pass's patches; batch_size unless told.
        run_folder: where answers.jsonl (each answer, as soon as it is there) and skipped.jsonl are written; both are
            appended to. None writes nothing.
        on_progress: called as on_progress(done, total).

    Raises:
        EvaluationStopped: more samples than allowed were unreadable; holds the answers so far.
        ValueError: an argument out of range.
    """
    if not samples:
        raise ValueError("evaluate: needs at least one sample, got none; check the annotation file")
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}; 1 needs the least memory")
    options = AnswerOptions(strategy, budget_tokens, max_new_tokens)
    run = Run(samples, None if run_folder is None else Path(run_folder), max_skipped_fraction)
    groups = [list(group) for _, group in itertools.groupby(range(len(samples)), key=lambda i: samples[i].video)]
    with VideoCache(functools.partial(open_video, time_limit=time_limit), MAX_IDLE_VIDEOS) as videos:

        def read(group: list[int]) -> Reading:
            video = samples[group[0]].video
            return engine.read(video, budget_tokens, num_queries=len(group), videos=videos)

        num_ahead = batch_size if read_ahead is None else read_ahead
        ahead = Prefetcher(groups, read, ahead=num_ahead, discard=Reading.close)
        # Closed here, not when they are collected: an error must leave no thread and no video behind.
        with (
            contextlib.closing(iter(ahead)) as loaded,
            contextlib.closing(_batches(samples, loaded, batch_size)) as batches,
        ):
            for batch in batches:
                run.add(batch, _answers(engine, batch, options))
                if on_progress is not None:
                    on_progress(len(run.answers), len(samples))
    return run.evaluation()


def _batches(
    samples: Sequence[Sample], loaded: Iterable[tuple[list[int], Reading | VideoError]], size: int
) -> Generator[list[Asked]]:
    """Batches of `size` from groups of samples on one video; a video is given back after the last batch it is in."""
    waiting: list[Asked] = []
    try:
        for group, reading in loaded:
            waiting += [Asked(index, samples[index], reading, is_last=index == group[-1]) for index in group]
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = _after(waiting, size)
        if waiting:
            yield waiting
    finally:
        _after(waiting, len(waiting))


def _answers(engine: ZoomZero, batch: Sequence[Asked], options: AnswerOptions) -> list[Answer | VideoError]:
    """For each sample its answer, or why its video cannot be read."""
    asked = [
        (Query(item.sample.video, item.sample.question, item.sample.options), item.reading)
        for item in batch
        if not isinstance(item.reading, VideoError)
    ]
    answered = iter(engine.answer_readings(asked, options))
    return [item.reading if isinstance(item.reading, VideoError) else next(answered) for item in batch]


def _after(batch: list[Asked], count: int) -> list[Asked]:
    """The batch without its first `count` samples, whose videos are given back where no later sample needs them."""
    for item in batch[:count]:
        if item.is_last and not isinstance(item.reading, VideoError):
            item.reading.close()
    return batch[count:]
