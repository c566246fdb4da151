"""Countings of grounded video question answering, pure functions of samples and predictions.

`metrics` is the fair one: every question counts, one without a prediction as wrong. The others count as the authors of
a benchmark count, for comparison with their tables; docs/evaluating.md says where they differ. All shares are in
[0, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from zoomzero.annotations import Sample
from zoomzero.evaluation.bootstrap import mean_intervals
from zoomzero.intervals import Span, iog, iop, iou

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
IOP_THRESHOLDS = (0.3, 0.5)
CGBENCH_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
# A prediction is grounded when at least this share of it is true.
GROUNDED_IOP = 0.5


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model said about one sample.

    Attributes:
        letter: letter of its answer, None if it gave none.
        spans: evidence in seconds, the first named first; empty if it named none.
    """

    letter: str | None
    spans: tuple[Span, ...]


Predictions = Sequence[Prediction | None]


def metrics(samples: Sequence[Sample], predictions: Predictions) -> dict[str, float]:
    """Grounding and answer metrics; a sample without a prediction counts as wrong.

    IoU, IoP and IoG compare the union of the predicted spans with the union of the true ones: intersection over union,
    over prediction and over ground truth. IoG alone is gamed by naming the whole video: read it beside IoP. Any letter
    with the right option's text is right.

    Returns:
        num_samples, Acc and, where samples have true spans: num_grounded of them, and over these mIoU, IoU@0.3/0.5/0.7
        (R@1 at those thresholds: one prediction per sample), mIoP, IoP@0.3/0.5, mIoG, Acc@GQA (answer right and IoP >=
        0.5). Where no sample has a right answer (a secret test set) num_samples alone.
    """
    return {"num_samples": float(len(samples)), **_means(question_figures(samples, predictions))}


def metric_intervals(
    samples: Sequence[Sample], predictions: Predictions, *, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of what `metrics` gives, by the same names; counts have none."""
    figures = question_figures(samples, predictions)
    answered = {name: values for name, values in figures.items() if name in _ANSWER_FIGURES}
    grounded = {name: values for name, values in figures.items() if name not in _ANSWER_FIGURES}
    return mean_intervals(answered, level=level, seed=seed) | mean_intervals(grounded, level=level, seed=seed)


_ANSWER_FIGURES = ("Acc",)


def question_figures(samples: Sequence[Sample], predictions: Predictions) -> dict[str, list[float]]:
    """The figures whose means `metrics` gives: Acc per sample with a right answer, the others per sample with spans."""
    _check_lengths("metrics", samples, predictions)
    answered = [pair for pair in zip(samples, predictions, strict=True) if pair[0].answer]
    grounded = [pair for pair in answered if pair[0].spans]
    figures: dict[str, list[float]] = {}
    if answered:
        figures["Acc"] = [float(_is_right(sample, prediction)) for sample, prediction in answered]
    if grounded:
        unions = {
            name: [measure(p.spans, s.spans) if p else 0.0 for s, p in grounded]
            for name, measure in (("IoU", iou), ("IoP", iop), ("IoG", iog))
        }
        right = [_is_right(sample, prediction) for sample, prediction in grounded]
        figures |= _grounding(unions["IoU"], unions["IoP"], right)
        figures["mIoG"] = unions["IoG"]
        figures["R@1"] = figures["IoU@0.5"]
    return figures


def metrics_by(
    samples: Sequence[Sample], predictions: Predictions, groups: Callable[[Sample], Sequence[str]]
) -> dict[str, dict[str, float]]:
    """`metrics` of each group of samples, in the order in which the groups appear.

    groups: names of the groups that a sample counts in, e.g. `lambda sample: sample.tasks`.
    """
    _check_lengths("metrics_by", samples, predictions)
    members: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        for name in groups(sample):
            members.setdefault(name, []).append(index)
    return {
        name: metrics([samples[i] for i in indices], [predictions[i] for i in indices])
        for name, indices in members.items()
    }


def nextgqa_metrics(samples: Sequence[Sample], predictions: Predictions) -> dict[str, float]:
    """The figures of NExT-GQA's official script, for comparison with published tables.

    It takes one span per prediction (the first here), the maximum over the true spans of IoU and of IoP each on its
    own, and leaves samples without a prediction out of the count, which flatters a model that fails: see `metrics`.
    """
    _check_lengths("nextgqa_metrics", samples, predictions)
    overlaps, precisions, right = [], [], []
    for sample, prediction in zip(samples, predictions, strict=True):
        if prediction is not None and prediction.spans:
            first = [prediction.spans[0]]
            overlaps.append(max((iou(first, [true]) for true in sample.spans), default=0.0))
            precisions.append(max((iop(first, [true]) for true in sample.spans), default=0.0))
            right.append(prediction.letter == sample.answer)
    figures = {"Acc": [float(value) for value in right], **_grounding(overlaps, precisions, right)}
    return {"num_samples": float(len(right)), **{name: mean(values) for name, values in figures.items()}}


def rextime_metrics(samples: Sequence[Sample], predictions: Predictions) -> dict[str, float]:
    """The figures of ReXTime's official script: one span per question (the first), against the best true window.

    A missing question is an error of that script; here it counts as wrong.

    Returns:
        num_samples, mIoU, R@1,IoU=t (share with IoU >= t), VQA (accuracy), VQA,mIoU@t (answer right and IoU >= t) for t
        in 0.3, 0.5, 0.7.
    """
    _check_lengths("rextime_metrics", samples, predictions)
    overlaps, right = [], []
    for sample, prediction in zip(samples, predictions, strict=True):
        first = [prediction.spans[0]] if prediction is not None and prediction.spans else []
        overlaps.append(max((iou(first, [true]) for true in sample.spans), default=0.0))
        right.append(prediction is not None and prediction.letter == sample.answer)
    result = {"num_samples": float(len(samples)), "mIoU": mean(overlaps)}
    result |= {f"R@1,IoU={t}": mean([overlap >= t for overlap in overlaps]) for t in IOU_THRESHOLDS}
    result["VQA"] = mean(right)
    for t in IOU_THRESHOLDS:
        result[f"VQA,mIoU@{t}"] = mean([ok and overlap >= t for ok, overlap in zip(right, overlaps, strict=True)])
    return result


def cgbench_metrics(
    samples: Sequence[Sample], predictions: Predictions, clue_predictions: Predictions | None = None
) -> dict[str, float]:
    """The figures of CG-Bench's official script, over the unions of spans; a missing prediction counts as wrong.

    Args:
        samples: with their clue intervals as spans.
        predictions: from the whole (long) video.
        clue_predictions: from the true clue intervals alone, where they were made.

    Returns:
        num_samples, long-acc, mIoU, rec@IoU (mean over thresholds 0.1 to 0.5 of the share with IoU >= threshold),
        acc@IoU (the same with a right answer besides) and, with clue_predictions, clue-acc.
    """
    _check_lengths("cgbench_metrics", samples, predictions)
    overlaps = [iou(p.spans, s.spans) if p else 0.0 for s, p in zip(samples, predictions, strict=True)]
    right = [p is not None and p.letter == s.answer for s, p in zip(samples, predictions, strict=True)]
    result = {"num_samples": float(len(samples)), "long-acc": mean(right), "mIoU": mean(overlaps)}
    result["rec@IoU"] = mean([mean([overlap >= t for overlap in overlaps]) for t in CGBENCH_THRESHOLDS])
    both = list(zip(right, overlaps, strict=True))
    result["acc@IoU"] = mean([mean([ok and overlap >= t for ok, overlap in both]) for t in CGBENCH_THRESHOLDS])
    if clue_predictions is not None:
        _check_lengths("cgbench_metrics", samples, clue_predictions)
        result["clue-acc"] = mean(
            [p is not None and p.letter == s.answer for s, p in zip(samples, clue_predictions, strict=True)]
        )
    return result


def task_average(samples: Sequence[Sample], predictions: Predictions) -> float:
    """Mean over the tasks of each task's accuracy: MLVU's M-Avg, which does not weigh tasks by their questions."""
    return mean([figures["Acc"] for figures in metrics_by(samples, predictions, lambda sample: sample.tasks).values()])


def mean(values: Sequence[float]) -> float:
    """Mean of the values, 0 without any."""
    return sum(values) / len(values) if values else 0.0


def _is_right(sample: Sample, prediction: Prediction | None) -> bool:
    return prediction is not None and sample.is_right(prediction.letter)


def _grounding(overlaps: Sequence[float], precisions: Sequence[float], right: Sequence[bool]) -> dict[str, list[float]]:
    """Per-question figures from IoU and IoP."""
    figures = {"mIoU": list(overlaps)}
    figures |= {f"IoU@{t}": [float(overlap >= t) for overlap in overlaps] for t in IOU_THRESHOLDS}
    figures["mIoP"] = list(precisions)
    figures |= {f"IoP@{t}": [float(precision >= t) for precision in precisions] for t in IOP_THRESHOLDS}
    figures["Acc@GQA"] = [float(ok and p >= GROUNDED_IOP) for ok, p in zip(right, precisions, strict=True)]
    return figures


def _means(figures: dict[str, list[float]]) -> dict[str, float]:
    counts = {"num_grounded": float(len(figures["mIoU"]))} if "mIoU" in figures else {}
    return counts | {name: mean(values) for name, values in figures.items()}


def _check_lengths(op: str, samples: Sequence[Sample], predictions: Predictions) -> None:
    if len(samples) != len(predictions):
        raise ValueError(
            f"{op}: needs a prediction per sample, got {len(predictions)} for {len(samples)}; pass None if missing"
        )
