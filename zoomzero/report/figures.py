"""The figures of evaluations that the page draws: strategies, overlaps, calibration, groups, two runs compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.evaluation.bootstrap import mean_intervals
from zoomzero.evaluation.metrics import mean, metric_intervals, metrics
from zoomzero.evaluation.records import AnswerRecord
from zoomzero.evaluation.summary import HELD_EVIDENCE, zoom_figures
from zoomzero.intervals import iog, iou
from zoomzero.report.evaluations import EvaluationRun, KeptAnswer

NUM_BINS = 10
COSTS = ("visual_tokens", "text_tokens", "seconds", "flops")
# Seconds up to which a video counts in a class, where the benchmark has no classes of its own.
DURATION_CLASSES = ((60.0, "up to 1 min"), (600.0, "1 to 10 min"), (float("inf"), "over 10 min"))


def run_figures(run: EvaluationRun) -> dict[str, Any]:
    """All figures of a run; see the schema in data.py. Questions without an answer count as wrong."""
    samples, records = list(run.samples.values()), run.records()
    predictions = [None if record is None else record.prediction for record in records]
    values, intervals = metrics(samples, predictions), metric_intervals(samples, predictions)
    return {
        "metrics": [{"name": name, "value": value, **_interval(intervals.get(name))} for name, value in values.items()],
        "strategies": _strategies(run),
        "zoom": zoom_figures(samples, records),
        "iou_histogram": _iou_histogram(samples, records),
        "calibration": _calibration(samples, records),
        "by_task": _by(run, lambda sample: sample.tasks),
        "by_duration": _by(run, lambda sample: (duration_class(sample),) if duration_class(sample) else ()),
    }


def duration_class(sample: Sample) -> str:
    """The benchmark's class of the video's length, or one by its seconds; "" where neither is known."""
    if sample.duration_class or sample.duration is None:
        return sample.duration_class
    return next(name for limit, name in DURATION_CLASSES if sample.duration <= limit)


def difference(runs: Sequence[EvaluationRun]) -> dict[str, Any] | None:
    """How much more of the shared questions the second of two runs answers rightly; None without any."""
    first, second = runs
    shared = [key for key, sample in first.samples.items() if key in second.samples and sample.answer]
    if not shared:
        return None
    rights = [[_is_right(run.samples[key], run.answers.get(key)) for key in shared] for run in (first, second)]
    gains = [float(b) - float(a) for a, b in zip(*rights, strict=True)]
    return {
        "num_shared": len(shared),
        "gained": sum(gain > 0 for gain in gains),
        "lost": sum(gain < 0 for gain in gains),
        "value": mean(gains),
        **_interval(mean_intervals({"gain": gains}).get("gain")),
    }


def flags(sample: Sample, answer: KeptAnswer | None) -> list[str]:
    """What is worth finding about an answer: "unanswered", "wrong", "right", "rescued", "broken", "missed"."""
    if answer is None:
        return ["unanswered"]
    found = []
    passes = answer.record.passes
    if sample.answer:
        right = sample.is_right(answer.record.letter)
        found.append("right" if right else "wrong")
        if len(passes) > 1:
            first = sample.is_right(passes[0].letter)
            found += ["rescued"] * (right and not first) + ["broken"] * (first and not right)
    region = next((look.looked_at for look in reversed(passes) if look.name == "zoom"), None)
    if sample.spans and region is not None and region and iog(region, sample.spans) < HELD_EVIDENCE:
        found.append("missed")
    return found


def _interval(pair: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = pair or (None, None)
    return {"low": low, "high": high}


def _is_right(sample: Sample, answer: KeptAnswer | None) -> bool:
    return answer is not None and sample.is_right(answer.record.letter)


def _strategies(run: EvaluationRun) -> list[dict[str, Any]]:
    """The first pass alone and the whole strategy: accuracy with its interval, and the mean cost of a question."""
    judged = [key for key, sample in run.samples.items() if sample.answer]
    answered = list(run.answers.values())
    if not judged or not answered:
        return []
    firsts, finals = [], []
    for key in judged:
        answer, sample = run.answers.get(key), run.samples[key]
        firsts.append(float(answer is not None and sample.is_right(answer.record.passes[0].letter)))
        finals.append(float(_is_right(sample, answer)))
    costs = [
        {name: mean([answer.seen[0].cost.get(name, 0.0) for answer in answered]) for name in COSTS},
        {name: mean([answer.record.cost.get(name, 0.0) for answer in answered]) for name in COSTS},
    ]
    rows = [("first look alone", firsts, costs[0]), (str(run.settings.get("strategy", "whole")), finals, costs[1])]
    if all(len(answer.seen) == 1 for answer in answered):
        rows = rows[1:]
    return [
        {
            "name": name,
            "accuracy": mean(rights),
            **_interval(mean_intervals({"Acc": rights}).get("Acc")),
            "cost": cost,
        }
        for name, rights, cost in rows
    ]


def _bin(value: float) -> int:
    return min(int(value * NUM_BINS), NUM_BINS - 1)


def _iou_histogram(samples: Sequence[Sample], records: Sequence[AnswerRecord | None]) -> list[int]:
    """Questions with evidence by the IoU of their final spans, in ten bins; empty without any."""
    counts = [0] * NUM_BINS
    for sample, record in zip(samples, records, strict=True):
        if sample.spans:
            counts[_bin(iou(record.spans, sample.spans) if record else 0.0)] += 1
    return counts if any(counts) else []


def _calibration(samples: Sequence[Sample], records: Sequence[AnswerRecord | None]) -> dict[str, Any] | None:
    """Final answers by confidence in ten bins, and the expected calibration error; None without right answers."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(NUM_BINS)]
    for sample, record in zip(samples, records, strict=True):
        if sample.answer and record is not None and record.letter is not None:
            sure = min(max(record.confidence, 0.0), 1.0)
            bins[_bin(sure)].append((sure, sample.is_right(record.letter)))
    total = sum(map(len, bins))
    if not total:
        return None
    points = [
        {
            "count": len(pairs),
            "confidence": mean([sure for sure, _ in pairs]),
            "accuracy": mean([ok for _, ok in pairs]),
        }
        for pairs in bins
        if pairs
    ]
    error = sum(point["count"] * abs(point["confidence"] - point["accuracy"]) for point in points) / total
    return {"error": error, "points": points}


def _by(run: EvaluationRun, groups: Callable[[Sample], Sequence[str]]) -> list[dict[str, Any]]:
    """Accuracy of each group of questions, with its interval."""
    members: dict[str, list[float]] = {}
    for key, sample in run.samples.items():
        if sample.answer:
            for name in groups(sample):
                members.setdefault(name, []).append(float(_is_right(sample, run.answers.get(key))))
    return [
        {
            "name": name,
            "count": len(rights),
            "accuracy": mean(rights),
            **_interval(mean_intervals({"Acc": rights}).get("Acc")),
        }
        for name, rights in members.items()
    ]
