"""What the page is made of: one dictionary in JSON's types, and the sheets of thumbnails.

Note [The page's data]
data = {
  "title": str, "lead": str,
  "runs": [run],            evaluations, one or two; for a demo before and after the training
  "difference": {num_shared, gained, lost, value, low, high} | null     accuracy of the second run minus the first's
  "questions": [question],  of all runs, in the order of their files
  "trainings": [training],  none, one or two
  "thumbnails": {"shown": int, "note": str}      questions with frames, and why others have none
}
run = {"name", "settings": [[name, value]], "num_questions", "num_answered", and what figures.run_figures gives:
  "metrics": [{name, value, low, high}], "strategies": [{name, accuracy, low, high, cost: {visual_tokens, ...}}],
  "zoom": {num_zoomed, rescued, broken, held_evidence, ...}, "iou_histogram": [count per tenth],
  "calibration": {error, points: [{count, confidence, accuracy}]} | null,
  "by_task", "by_duration": [{name, count, accuracy, low, high}]}
question = {"question", "options": [text], "answer": letter ("" if secret), "spans": [[start, end]], "duration",
  "tasks": [name], "length": duration class, "category", "video": file name, "id", "answers": [answer | null per run]}
answer = {"letter", "text", "confidence", "spans", "right": bool | null, "iou": float | null, "flags": [figures.flags],
  "cost": {...}, "passes": [pass]}
pass = {"name", "why", "letter", "words", "text", "confidence", "right", "looked_at", "spans", "cost",
  "num_frames", "size": [height, width], "frames": [[first, step, count]] (regular runs of times), "sheet": id | null}
training = {"name", "series": {metric: [[step, value]]}, "samples": [sample]}
sample = {"step", "question", "answer", "spans", "responses": [{rewards: {name: value}, tokens, segments, advantages}]}

Sheets lie outside of it, each in a script block of its own, and are parsed when a question is looked at: with them a
page takes megabytes, without them it opens at once. All numbers are finite or null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.intervals import iou
from zoomzero.limits import TIME_LIMIT_SECONDS
from zoomzero.report.evaluations import EvaluationRun, KeptAnswer, is_evaluation, read_evaluation
from zoomzero.report.figures import difference, duration_class, flags, run_figures
from zoomzero.report.thumbnails import Sheets
from zoomzero.report.trainings import is_training, read_training

MAX_RUNS = 2
# What a page takes beside its questions and thumbnails: style, scripts and the runs' figures.
PAGE_BYTES = 200_000
# Seconds by which two steps of frame times may differ and still count as regular.
STEP_TOLERANCE = 0.011
# Folders of a demo: what was measured before and after, and the training between.
DEMO_EVALUATIONS, DEMO_TRAINING = ("before", "after"), "checkpoint"


@dataclasses.dataclass(frozen=True)
class Report:
    """A page before it is written."""

    data: dict[str, Any]
    """See Note [The page's data]."""
    sheets: Sequence[dict[str, Any]]
    """Thumbnails, see `frames.sheet`; a pass's "sheet" is a place in this list."""


def read_report(
    folders: Sequence[Path],
    *,
    title: str | None = None,
    lead: str = "",
    max_bytes: int = 0,
    time_limit: float | None = TIME_LIMIT_SECONDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read one run or two.

    Args:
        folders: of evaluations, trainings or demos.
        title: heading; the runs' names unless told.
        lead: what the runs were, in a few sentences.
        max_bytes: size of the page at which thumbnails end, 0 for none; the videos are read for them.
        time_limit: seconds after which a decoder without a sign of life is stopped; None decodes in this process.
        on_progress: called as on_progress(done, total) while videos are read.

    Raises:
        ValueError: no run, or more than two, or folders that hold none.
    """
    if not 1 <= len(folders) <= MAX_RUNS:
        raise ValueError(f"report: needs one run or two to compare, got {len(folders)}; name their folders")
    runs: list[EvaluationRun] = []
    trainings: list[dict[str, Any]] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        found = _read(folder, name)
        runs += found[0]
        trainings += found[1]
    if len(runs) > MAX_RUNS:
        raise ValueError(f"report: two evaluations can be compared, got {len(runs)}; name their own folders")
    questions = _questions(runs)
    sheets = Sheets(max_bytes - PAGE_BYTES - len(json.dumps(_finite([question for question, _ in questions]))))
    if max_bytes:
        sheets.read(questions, time_limit, on_progress)
    data = {
        "title": title or " and ".join(_names(folders)),
        "lead": lead,
        "runs": [_run(run) for run in runs],
        "difference": difference(runs) if len(runs) == MAX_RUNS else None,
        "questions": [question for question, _ in questions],
        "trainings": trainings,
        "thumbnails": {"shown": sheets.num_questions, "note": sheets.note},
    }
    return Report(_finite(data), sheets.sheets)


def _read(folder: Path, name: str) -> tuple[list[EvaluationRun], list[dict[str, Any]]]:
    if is_evaluation(folder):
        return [read_evaluation(folder, name)], []
    if is_training(folder):
        return [], [read_training(folder, name)]
    if all(is_evaluation(folder / part) for part in DEMO_EVALUATIONS):
        training = folder / DEMO_TRAINING
        trained = [read_training(training, "training")] if is_training(training) else []
        return [read_evaluation(folder / part, part) for part in DEMO_EVALUATIONS], trained
    raise ValueError(
        f"{folder}: must be the folder of an evaluation (answers.jsonl), a training (metrics.jsonl) or a demo, got "
        "none of these; run `zoomzero eval`, `zoomzero train` or `zoomzero demo` first"
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with their parents' where those are equal."""
    resolved = [folder.resolve() for folder in folders]
    names = [folder.name or "run" for folder in resolved]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in resolved]
    return names


def _run(run: EvaluationRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "settings": [[name, str(value)] for name, value in run.settings.items() if value is not None],
        "num_questions": len(run.samples),
        "num_answered": len(run.answers),
        **run_figures(run),
    }


def _questions(runs: Sequence[EvaluationRun]) -> list[tuple[dict[str, Any], str]]:
    """Every question of any run with the path of its video."""
    samples: dict[str, Sample] = {}
    for run in runs:
        samples |= {key: sample for key, sample in run.samples.items() if key not in samples}
    return [
        (_question(sample, [run.answers.get(key) for run in runs], [key in run.samples for run in runs]), sample.video)
        for key, sample in samples.items()
    ]


def _question(sample: Sample, answers: Sequence[KeptAnswer | None], asked: Sequence[bool]) -> dict[str, Any]:
    seen = [time for answer in answers if answer for look in answer.seen for time in look.timestamps]
    ends = [end for _, end in sample.spans]
    return {
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "spans": [list(span) for span in sample.spans],
        # A benchmark may not say how long its videos are: the last frame seen is close.
        "duration": sample.duration or max([*seen, *ends, 1.0]),
        "tasks": list(sample.tasks),
        "length": duration_class(sample),
        "category": sample.category,
        "video": Path(sample.video).name,
        "id": sample.question_id,
        "answers": [
            _answer(sample, answer) if answer else ({"flags": ["unanswered"]} if was_asked else None)
            for answer, was_asked in zip(answers, asked, strict=True)
        ],
    }


def _answer(sample: Sample, answer: KeptAnswer) -> dict[str, Any]:
    record = answer.record
    return {
        "letter": record.letter,
        "text": answer.text,
        "confidence": record.confidence,
        "spans": [list(span) for span in record.spans],
        "right": sample.is_right(record.letter) if sample.answer else None,
        "iou": iou(record.spans, sample.spans) if sample.spans else None,
        "flags": flags(sample, answer),
        "cost": dict(record.cost),
        "passes": [
            {
                "name": look.name,
                "why": seen.why,
                "letter": look.letter,
                "words": seen.words,
                "text": look.text,
                "confidence": look.confidence,
                "right": sample.is_right(look.letter) if sample.answer else None,
                "looked_at": [list(span) for span in look.looked_at],
                "spans": [list(span) for span in seen.spans],
                "cost": dict(seen.cost),
                "num_frames": seen.num_frames,
                "size": list(seen.size),
                "frames": regular_runs(seen.timestamps),
                "sheet": None,
            }
            for look, seen in zip(record.passes, answer.seen, strict=True)
        ],
    }


def regular_runs(times: Sequence[float]) -> list[list[float]]:
    """Rising times as [first, step, count] of even stretches: a plan of hundreds of frames is one or a few."""
    runs: list[list[float]] = []
    for time in times:
        if runs:
            first, step, count = runs[-1]
            wanted = first + step * count if count > 1 else time
            if abs(time - wanted) < STEP_TOLERANCE:
                # The step over the whole stretch so far, so that rounded times do not drift.
                runs[-1] = [first, (time - first) / count, count + 1]
                continue
        runs.append([time, 0.0, 1])
    return [[first, round(step, 4), int(count)] for first, step, count in runs]


def _finite(value: Any) -> Any:
    """The value in JSON's types: numbers with six digits, those that are not finite as null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
