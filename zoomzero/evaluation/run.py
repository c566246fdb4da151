"""Running a model over annotated samples."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from zoomzero.annotations import Sample
from zoomzero.annotations.durations import DurationCheck, WrongDuration
from zoomzero.answering.answer import Answer, Query
from zoomzero.answering.engine import MAX_IDLE_VIDEOS, Engine, Reading
from zoomzero.answering.subtitles import load_subtitles
from zoomzero.evaluation.metrics import mean, metrics
from zoomzero.evaluation.processes import Processes
from zoomzero.evaluation.questions import write_questions
from zoomzero.evaluation.records import AnswerRecord, Evaluation, EvaluationStopped, question_keys
from zoomzero.evaluation.run_folder import RunFolder
from zoomzero.evaluation.settings import EvaluationChanges, EvaluationSettings
from zoomzero.evaluation.summary import write_summary
from zoomzero.skipping import SKIPPED_FILE, SkipLog
from zoomzero.video import VideoError, open_video
from zoomzero.video.cache import VideoCache
from zoomzero.video.prefetch import Prefetcher


def evaluate(
    engine: Engine,
    samples: Sequence[Sample],
    settings: EvaluationSettings | None = None,
    *,
    run_folder: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **changes: Unpack[EvaluationChanges],
) -> Evaluation:
    """Answer all samples and measure; the videos of the next samples are read while the model works.

    Args:
        engine: the model.
        samples: from `load_benchmark` or `load_annotations`. Neighbours on one video share its coarse pass's frames.
        settings: how; the defaults unless told.
        run_folder: where questions.jsonl, answers.jsonl (each answer, as soon as it is there), skipped.jsonl and, at
            the end, summary.json are written. Answers that lie there already, made with the same settings, are not
            made again; unreadable videos are tried again, and listed once more where they still are. None writes
            nothing.
        processes: those that share the questions by video, from `zoomzero.evaluation.processes.join_launch`; each calls
            this with the same arguments and gets the whole result. They need a run_folder. None is this process alone.
        on_progress: called as on_progress(done, total), with several processes about this one's share.
        changes: fields of the settings or of their `AnswerOptions` by name, e.g. strategy="rounds", batch_size=8.

    Raises:
        EvaluationStopped: more samples than allowed were unreadable; holds the answers so far.
        ValueError: an argument out of range, or another run's folder.
        TypeError: an unknown setting.
        OSError: the folder cannot be written.
    """
    if not samples:
        raise ValueError("evaluate: needs at least one sample, got none; check the annotation file")
    settings = (settings or EvaluationSettings()).changed(changes)
    processes = processes or Processes()
    if processes.count > 1 and run_folder is None:
        raise ValueError(
            f"evaluate: {processes.count} processes need a run_folder to share the questions, got None; name one"
        )
    if settings.use_subtitles:
        # A file that cannot be read is told now, not in the middle of the run.
        for path in dict.fromkeys(sample.subtitles for sample in samples if sample.subtitles is not None):
            load_subtitles(path)
    work = _Work(engine, settings)
    with contextlib.ExitStack() as stack:
        folder = None
        if run_folder is not None:
            folder = stack.enter_context(RunFolder(run_folder, work.record(), processes))
        run = _Run(samples, folder, settings.max_skipped_fraction)
        if folder is not None and processes.is_first:
            write_questions(folder.path, samples)
        work.answer(run, run.groups()[processes.rank :: processes.count], on_progress)
        if processes.count > 1:
            run.join()
        result = run.evaluation()
        if folder is not None and processes.is_first:
            write_summary(folder.path, samples, result)
    return result


@dataclasses.dataclass(frozen=True)
class _Work:
    """How the samples of a run are answered."""

    engine: Engine
    """The model."""
    settings: EvaluationSettings
    """How to answer, and how many at a time."""

    def record(self) -> dict[str, Any]:
        """What answers depend on, in JSON's types."""
        options = dataclasses.asdict(self.settings.answers)
        for name in ("keep_frames", "num_decoders"):
            del options[name]
        # Budgets and templates of the checkpoint, or those that were named instead.
        asked = json.dumps(dataclasses.asdict(self.engine.planner.settings), sort_keys=True)
        return {
            "model": self.engine.name,
            **options,
            "use_subtitles": self.settings.use_subtitles,
            "settings_digest": hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()[:16],
        }

    def answer(self, run: _Run, groups: Sequence[list[int]], on_progress: Callable[[int, int], None] | None) -> None:
        """Answer groups of samples, each on one video; `run` takes the answers as they come."""
        total = run.num_done + sum(len(group) for group in groups)
        if run.num_done and on_progress is not None:
            on_progress(run.num_done, total)
        num_decoders = self.settings.answers.num_decoders
        open_one = functools.partial(open_video, time_limit=self.settings.time_limit, num_decoders=num_decoders)
        with contextlib.ExitStack() as stack:
            videos = stack.enter_context(VideoCache(open_one, MAX_IDLE_VIDEOS))

            def read(group: list[int]) -> Reading:
                path, budget = run.samples[group[0]].video, self.settings.answers.budget_tokens
                return self.engine.read(path, budget, num_queries=len(group), videos=videos)

            ahead = Prefetcher(
                groups, read, num_threads=num_decoders, ahead=self.settings.num_ahead, discard=Reading.close
            )
            # Closed here, not when they are collected: an error must leave no thread and no video behind.
            loaded = stack.enter_context(contextlib.closing(iter(ahead)))
            batches = stack.enter_context(contextlib.closing(_batches(run.samples, loaded, self.settings.batch_size)))
            for batch in run.waiting_for(batches):
                run.add(batch, self._answers(batch))
                if on_progress is not None:
                    on_progress(run.num_done, total)

    def _answers(self, batch: Sequence[_Asked]) -> list[Answer | VideoError]:
        """For each sample its answer, or why its video cannot be read."""
        asked = []
        for item in batch:
            if not isinstance(item.reading, VideoError):
                said = item.sample.subtitles if self.settings.use_subtitles else None
                query = Query(item.sample.video, item.sample.question, item.sample.options or None, said)
                asked.append((query, item.reading))
        answered = iter(self.engine.answer_readings(asked, self.settings.answers))
        return [item.reading if isinstance(item.reading, VideoError) else next(answered) for item in batch]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A sample whose video was read, or cannot be."""

    index: int
    """Place among the samples."""
    sample: Sample
    """The question."""
    reading: Reading | VideoError
    """Its video, or why that cannot be read."""
    is_last: bool
    """No later sample needs the reading."""


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


def _after(batch: list[_Asked], count: int) -> list[_Asked]:
    """The batch without its first `count` samples, whose videos are given back where no later sample needs them."""
    for item in batch[:count]:
        if item.is_last and not isinstance(item.reading, VideoError):
            item.reading.close()
    return batch[count:]


class _Run:
    """Answers of an evaluation in the samples' order, kept on disk as they come where there is a folder."""

    def __init__(self, samples: Sequence[Sample], folder: RunFolder | None, max_skipped_fraction: float) -> None:
        self.samples = samples
        self._folder = folder
        self._keys = question_keys(samples)
        kept = {} if folder is None else folder.kept
        self.answers: list[AnswerRecord | None] = [kept.get(key) for key in self._keys]
        self.num_resumed = sum(answer is not None for answer in self.answers)
        self.num_done = self.num_resumed
        self._skipped: dict[int, str] = {}
        self._durations = DurationCheck()
        self._waited = 0.0
        skip_file: Path | None = None
        if folder is not None:
            skip_file = folder.path / SKIPPED_FILE
            if kept and not self.num_resumed:
                raise ValueError(
                    f"{folder.path}: the folder must hold answers to these questions, got {len(kept)} to others; "
                    "choose another folder"
                )
        self._log = SkipLog(skip_file, len(samples), max_skipped_fraction)

    def groups(self) -> list[list[int]]:
        """Samples without an answer, neighbours on one video together."""
        pending = [index for index, answer in enumerate(self.answers) if answer is None]
        return [list(group) for _, group in itertools.groupby(pending, key=lambda index: self.samples[index].video)]

    def waiting_for(self, batches: Iterable[list[_Asked]]) -> Generator[list[_Asked]]:
        """The batches; the time in which the next one is not there is counted."""
        source = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(source, None)
            self._waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def add(self, batch: Sequence[_Asked], results: Sequence[Answer | VideoError]) -> None:
        """Take the results of the next samples; answers are on disk before a skipped sample can end the run."""
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, VideoError):
                continue
            if not isinstance(item.reading, VideoError):
                self._durations.compare(item.sample.video, item.sample.duration, item.reading.video.duration)
                # What lies beyond the reading ahead: frames of later passes.
                self._waited += result.timings["read"] - item.reading.seconds_each
            self.answers[item.index] = (
                AnswerRecord.from_dict(result.as_dict())
                if self._folder is None
                else self._folder.append(self._keys[item.index], item.index, item.sample, result)
            )
        self.num_done += len(batch)
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, VideoError):
                self._skipped[item.index] = str(result)
                try:
                    self._log.record(f"{item.index}: {item.sample.question}", result)
                except VideoError as stop:
                    raise EvaluationStopped(stop.path, stop.reason, self.answers[: batch[-1].index + 1]) from result

    def join(self) -> None:
        """Take what the other processes have found; all of them come to the same result.

        Raises:
            EvaluationStopped: together they skipped more samples than allowed.
        """
        if self._folder is None:
            raise RuntimeError("evaluate: several processes share a run's folder, got none; pass run_folder")
        own = {
            "skipped": list(self._skipped.items()),
            "wrong_durations": [dataclasses.asdict(item) for item in self._durations.wrong.values()],
            "waited": self._waited,
        }
        parts, answers = self._folder.exchange(own)
        self.answers = [answers.get(key) for key in self._keys]
        self._skipped = {index: reason for part in parts for index, reason in part["skipped"]}
        self._durations.wrong = {
            item["video"]: WrongDuration(**item) for part in parts for item in part["wrong_durations"]
        }
        self._waited = sum(part["waited"] for part in parts)
        if len(self._skipped) > self._log.max_skipped_fraction * len(self.samples):
            index, reason = min(self._skipped.items())
            raise EvaluationStopped(
                self.samples[index].video,
                f"{reason}; {len(self._skipped)} of {len(self.samples)} samples have no readable video, more than "
                f"max_skipped_fraction={self._log.max_skipped_fraction} allows; see {self._log.file}",
                self.answers,
            )

    def evaluation(self) -> Evaluation:
        """The result, once all samples are done."""
        coarse = [
            answer is not None and bool(answer.passes) and sample.is_right(answer.passes[0].letter)
            for sample, answer in zip(self.samples, self.answers, strict=True)
        ]
        predictions = [None if answer is None else answer.prediction for answer in self.answers]
        return Evaluation(
            answers=self.answers,
            skipped=sorted(self._skipped.items()),
            coarse_accuracy=mean(coarse),
            metrics=metrics(self.samples, predictions) | {"num_skipped": float(len(self._skipped))},
            num_resumed=self.num_resumed,
            num_set_aside=0 if self._folder is None else self._folder.num_set_aside,
            wrong_durations=tuple(self._durations.wrong.values()),
            waited_seconds=self._waited,
        )
