"""Evaluating grounded video question answering: metrics, and running a model over annotated samples."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from zoomzero.annotations import Sample, load_annotations
from zoomzero.answering.engine import MAX_IDLE_VIDEOS, Answer, Query, Reading, ZoomZero
from zoomzero.intervals import iog, iop, iou
from zoomzero.skipping import SKIPPED_FILE, SkipLog
from zoomzero.video import DEFAULT_TIME_LIMIT_SECONDS, VideoError, open_video
from zoomzero.video.cache import VideoCache
from zoomzero.video.prefetch import Prefetcher

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
IOP_THRESHOLDS = (0.3, 0.5)
BENCHMARKS = ("nextgqa",)
ANSWERS_FILE = "answers.jsonl"

Span = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model said about one sample: letter (None: no answer) and spans in seconds (empty: none named)."""

    letter: str | None
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    answers: one a sample, None where its video could not be read; skipped: (sample index, reason) of those;
    coarse_accuracy: share of samples whose coarse pass answered rightly; metrics: of the final answers, see `metrics`,
    and num_skipped.
    """

    answers: list[Answer | None]
    skipped: list[tuple[int, str]]
    coarse_accuracy: float
    metrics: dict[str, float]


class EvaluationStopped(VideoError):
    """Too many videos are unreadable. answers: those of the samples up to there, None where the video was not read."""

    def __init__(self, path: str, reason: str, answers: Sequence[Answer | None] = ()) -> None:
        super().__init__(path, reason)
        self.answers = list(answers)


def load_benchmark(name: str, root: str | Path) -> list[Sample]:
    """Samples of a published benchmark from its folder.

    Args:
        name: "nextgqa": a NExT-GQA-style annotations.json with the videos beside it.
        root: the benchmark's folder.

    Raises:
        ValueError: unknown name, or a file that is not such a benchmark.
        OSError: a file is missing.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"load_benchmark: name must be one of {', '.join(BENCHMARKS)}, got {name!r}; choose one")
    return load_annotations(Path(root) / "annotations.json")


def metrics(samples: Sequence[Sample], predictions: Sequence[Prediction | None]) -> dict[str, float]:
    """Grounding and answer metrics, each in [0, 1]; a sample without a prediction counts as wrong.

    IoU, IoP and IoG compare the union of the predicted spans with the union of the true ones: intersection over union,
    over prediction and over ground truth. IoG alone is gamed by naming the whole video: read it beside IoP.

    Returns:
        num_samples, Acc, mIoU, IoU@0.3/0.5/0.7 (R@1 at those thresholds: one prediction a sample), mIoP, IoP@0.3/0.5,
        mIoG, Acc@GQA (answer right and IoP >= 0.5).
    """
    _check_lengths(samples, predictions)
    rows = [
        (p is not None and p.letter == s.answer, *((f(p.spans, s.spans) if p else 0.0) for f in (iou, iop, iog)))
        for s, p in zip(samples, predictions, strict=True)
    ]
    result = _summary([(bool(right), u, p) for right, u, p, _ in rows])
    result["mIoG"] = _mean([row[3] for row in rows])
    result["R@1"] = result["IoU@0.5"]
    return {"num_samples": float(len(samples)), **result}


def nextgqa_metrics(samples: Sequence[Sample], predictions: Sequence[Prediction | None]) -> dict[str, float]:
    """The figures of NExT-GQA's official script, for comparison with published tables.

    It takes one span a prediction (the first here), the maximum over the true spans of IoU and of IoP each on its own,
    and leaves samples without a prediction out of the count, which flatters a model that fails: see `metrics`.
    """
    _check_lengths(samples, predictions)
    rows = []
    for sample, prediction in zip(samples, predictions, strict=True):
        if prediction is not None and prediction.spans:
            span = [prediction.spans[0]]
            best = [max(f(span, [true]) for true in sample.spans) if sample.spans else 0.0 for f in (iou, iop)]
            rows.append((prediction.letter == sample.answer, best[0], best[1]))
    return {"num_samples": float(len(rows)), **_summary(rows)}


def evaluate(
    engine: ZoomZero,
    samples: Sequence[Sample],
    *,
    strategy: str = "coarse_to_fine",
    budget_tokens: int | None = None,
    batch_size: int = 1,
    max_new_tokens: int = 512,
    max_skipped_fraction: float = 0.05,
    time_limit: float | None = DEFAULT_TIME_LIMIT_SECONDS,
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
    run = _Run(samples, None if run_folder is None else Path(run_folder), max_skipped_fraction)
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
                run.add(batch, _answers(engine, batch, strategy, max_new_tokens))
                if on_progress is not None:
                    on_progress(len(run.answers), len(samples))
    return run.evaluation()


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A sample whose video was read, or cannot be; is_last: no later sample needs the reading."""

    index: int
    sample: Sample
    reading: Reading | VideoError
    is_last: bool


def _batches(
    samples: Sequence[Sample], loaded: Iterable[tuple[list[int], Reading | VideoError]], size: int
) -> Generator[list[_Asked]]:
    """Batches of `size` from groups of samples on one video; a video is given back after the last batch it is in."""
    waiting: list[_Asked] = []
    try:
        for group, reading in loaded:
            waiting += [_Asked(index, samples[index], reading, is_last=index == group[-1]) for index in group]
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = _after(waiting, size)
        if waiting:
            yield waiting
    finally:
        _after(waiting, len(waiting))


def _answers(
    engine: ZoomZero, batch: Sequence[_Asked], strategy: str, max_new_tokens: int
) -> list[Answer | VideoError]:
    """For each sample its answer, or why its video cannot be read."""
    asked = [
        (Query(item.sample.video, item.sample.question, item.sample.options), item.reading)
        for item in batch
        if not isinstance(item.reading, VideoError)
    ]
    answered = iter(engine.answer_readings(asked, strategy, max_new_tokens=max_new_tokens))
    return [item.reading if isinstance(item.reading, VideoError) else next(answered) for item in batch]


def _after(batch: list[_Asked], count: int) -> list[_Asked]:
    """The batch without its first `count` samples, whose videos are given back where no later sample needs them."""
    for item in batch[:count]:
        if item.is_last and not isinstance(item.reading, VideoError):
            item.reading.close()
    return batch[count:]


class _Run:
    """Answers of an evaluation in the samples' order, kept on disk as they come where there is a folder."""

    def __init__(self, samples: Sequence[Sample], folder: Path | None, max_skipped_fraction: float) -> None:
        self.samples = samples
        self.answers: list[Answer | None] = []
        self.skipped: list[tuple[int, str]] = []
        self._file = None if folder is None else folder / ANSWERS_FILE
        self._log = SkipLog(None if folder is None else folder / SKIPPED_FILE, len(samples), max_skipped_fraction)

    def add(self, batch: Sequence[_Asked], results: Sequence[Answer | VideoError]) -> None:
        """Take the results of the next samples; answers are on disk before a skipped sample can end the run."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as out:
                for item, result in zip(batch, results, strict=True):
                    if not isinstance(result, VideoError):
                        asked = {"index": item.index, "video": item.sample.video, "question": item.sample.question}
                        out.write(json.dumps({**asked, **result.as_dict()}, ensure_ascii=False) + "\n")
        first = len(self.answers)
        self.answers += [None if isinstance(result, VideoError) else result for result in results]
        for index, result in enumerate(results, start=first):
            if isinstance(result, VideoError):
                self.skipped.append((index, str(result)))
                try:
                    self._log.record(f"{index}: {self.samples[index].question}", result)
                except VideoError as stop:
                    raise EvaluationStopped(stop.path, stop.reason, self.answers) from result

    def evaluation(self) -> Evaluation:
        predictions = [None if answer is None else Prediction(answer.letter, answer.spans) for answer in self.answers]
        coarse = [
            answer is not None and answer.passes[0].letter == sample.answer
            for sample, answer in zip(self.samples, self.answers, strict=True)
        ]
        figures = metrics(self.samples, predictions) | {"num_skipped": float(len(self.skipped))}
        return Evaluation(self.answers, self.skipped, _mean(coarse), figures)


def _summary(rows: Sequence[tuple[bool, float, float]]) -> dict[str, float]:
    """rows: (answer right, IoU, IoP)."""
    result = {"Acc": _mean([right for right, _, _ in rows]), "mIoU": _mean([u for _, u, _ in rows])}
    result |= {f"IoU@{threshold}": _mean([u >= threshold for _, u, _ in rows]) for threshold in IOU_THRESHOLDS}
    result["mIoP"] = _mean([p for _, _, p in rows])
    result |= {f"IoP@{threshold}": _mean([p >= threshold for _, _, p in rows]) for threshold in IOP_THRESHOLDS}
    result["Acc@GQA"] = _mean([right and p >= 0.5 for right, _, p in rows])
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _check_lengths(samples: Sequence[Sample], predictions: Sequence[Prediction | None]) -> None:
    if len(samples) != len(predictions):
        raise ValueError(
            f"metrics: needs a prediction a sample, got {len(predictions)} for {len(samples)}; pass None if missing"
        )
