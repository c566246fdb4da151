"""The figures of an evaluation: one dictionary for summary.json, and the official counting of each benchmark."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.evaluation.metrics import (
    Predictions,
    cgbench_metrics,
    mean,
    metric_intervals,
    metrics_by,
    nextgqa_metrics,
    rextime_metrics,
    task_average,
)
from zoomzero.evaluation.records import AnswerRecord, Evaluation
from zoomzero.evaluation.run_folder import SUMMARY_FILE
from zoomzero.files import write_whole
from zoomzero.intervals import iog

# A zoomed region holds the evidence when it covers at least this share of it.
HELD_EVIDENCE = 0.5


def official_metrics(benchmark: str | None, samples: Sequence[Sample], predictions: Predictions) -> dict[str, float]:
    """The figures that a benchmark's authors report; NExT-GQA's for questions of one's own (benchmark None).

    predictions: `Evaluation.official_predictions`. Empty where the right answers are secret.
    """
    if not any(sample.answer for sample in samples):
        return {}
    grounded = {"nextgqa": nextgqa_metrics, "rextime": rextime_metrics, "cgbench": cgbench_metrics}
    if benchmark is None or benchmark in grounded:
        return grounded[benchmark or "nextgqa"](samples, predictions)
    by_task = metrics_by(samples, predictions, lambda sample: sample.tasks)
    by_class = metrics_by(samples, predictions, lambda sample: [sample.duration_class] if sample.duration_class else [])
    rights = [p is not None and p.letter == s.answer for s, p in zip(samples, predictions, strict=True)]
    result = {"num_samples": float(len(samples)), "Acc": mean(rights)}
    if benchmark == "mlvu":
        result["M-Avg"] = task_average(samples, predictions)
    return result | {name: figures["Acc"] for name, figures in {**by_class, **by_task}.items()}


def zoom_figures(samples: Sequence[Sample], answers: Sequence[AnswerRecord | None]) -> dict[str, float]:
    """What zooming did, over the answers that have a zoom pass; empty without any.

    Returns:
        num_zoomed; rescued and broken: shares whose first pass answered wrongly and whose final answer is right, and
        the other way round; where there is evidence: held_evidence, the share whose last zoomed region covers at least
        half of it, and Acc_held and Acc_missed, the accuracy where it does and where it does not.
    """
    zoomed = [
        (sample, answer)
        for sample, answer in zip(samples, answers, strict=True)
        if answer is not None and sample.answer and any(look.name == "zoom" for look in answer.passes)
    ]
    if not zoomed:
        return {}
    first = [sample.is_right(answer.passes[0].letter) for sample, answer in zoomed]
    last = [sample.is_right(answer.letter) for sample, answer in zoomed]
    both = list(zip(first, last, strict=True))
    result = {
        "num_zoomed": float(len(zoomed)),
        "rescued": mean([after and not before for before, after in both]),
        "broken": mean([before and not after for before, after in both]),
    }
    held: list[bool] = []
    missed: list[bool] = []
    for (sample, answer), right in zip(zoomed, last, strict=True):
        if sample.spans:
            region = next(look.looked_at for look in reversed(answer.passes) if look.name == "zoom")
            (held if not region or iog(region, sample.spans) >= HELD_EVIDENCE else missed).append(right)
    if held or missed:
        result["held_evidence"] = len(held) / (len(held) + len(missed))
        result |= {name: mean(group) for name, group in (("Acc_held", held), ("Acc_missed", missed)) if group}
    return result


def summarize(samples: Sequence[Sample], evaluation: Evaluation, benchmark: str | None = None) -> dict[str, Any]:
    """All figures of an evaluation, in JSON's types. benchmark: whose official counting to add."""
    predictions = evaluation.predictions
    answered = [answer for answer in evaluation.answers if answer is not None]
    costs = {name: [answer.cost.get(name, 0.0) for answer in answered] for name in ("visual_tokens", "text_tokens")}
    costs |= {"seconds": [answer.cost.get("seconds", 0.0) for answer in answered]}
    costs |= {"flops": [answer.cost.get("flops", 0.0) for answer in answered]}
    return {
        "benchmark": benchmark,
        "metrics": evaluation.metrics,
        "intervals": {name: list(pair) for name, pair in metric_intervals(samples, predictions).items()},
        "coarse_accuracy": evaluation.coarse_accuracy,
        "official": official_metrics(benchmark, samples, evaluation.official_predictions),
        "by_task": metrics_by(samples, predictions, lambda sample: sample.tasks),
        "by_duration_class": metrics_by(
            samples, predictions, lambda sample: [sample.duration_class] if sample.duration_class else []
        ),
        "by_category": metrics_by(samples, predictions, lambda sample: [sample.category] if sample.category else []),
        "zoom": zoom_figures(samples, evaluation.answers),
        "mean_cost": {name: mean(values) for name, values in costs.items()},
        "skipped": [
            {"index": index, "question_id": samples[index].question_id, "video": samples[index].video, "reason": reason}
            for index, reason in evaluation.skipped
        ],
        "wrong_durations": [
            {"video": item.video, "annotated": item.annotated, "found": item.found}
            for item in evaluation.wrong_durations
        ],
        "num_resumed": evaluation.num_resumed,
        "num_set_aside": evaluation.num_set_aside,
        "waited_seconds": evaluation.waited_seconds,
    }


def write_summary(
    folder: str | os.PathLike[str],
    samples: Sequence[Sample],
    evaluation: Evaluation,
    benchmark: str | None = None,
) -> dict[str, Any]:
    """Write summary.json into a run's folder; returns what it holds."""
    summary = summarize(samples, evaluation, benchmark)
    write_whole(Path(folder, SUMMARY_FILE), json.dumps(summary, indent=1) + "\n")
    return summary
