"""Countings of grounded video question answering, pure functions of samples and predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from zoomzero.annotations import Sample
from zoomzero.intervals import Span, iog, iop, iou

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
IOP_THRESHOLDS = (0.3, 0.5)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model said about one sample: letter (None: no answer) and spans in seconds (empty: none named)."""

    letter: str | None
    spans: tuple[Span, ...]


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
    result["mIoG"] = mean([row[3] for row in rows])
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


def _summary(rows: Sequence[tuple[bool, float, float]]) -> dict[str, float]:
    """rows: (answer right, IoU, IoP)."""
    result = {"Acc": mean([right for right, _, _ in rows]), "mIoU": mean([u for _, u, _ in rows])}
    result |= {f"IoU@{threshold}": mean([u >= threshold for _, u, _ in rows]) for threshold in IOU_THRESHOLDS}
    result["mIoP"] = mean([p for _, _, p in rows])
    result |= {f"IoP@{threshold}": mean([p >= threshold for _, _, p in rows]) for threshold in IOP_THRESHOLDS}
    result["Acc@GQA"] = mean([right and p >= 0.5 for right, _, p in rows])
    return result


def mean(values: Sequence[float]) -> float:
    """Mean of the values, 0 without any."""
    return sum(values) / len(values) if values else 0.0


def _check_lengths(samples: Sequence[Sample], predictions: Sequence[Prediction | None]) -> None:
    if len(samples) != len(predictions):
        raise ValueError(
            f"metrics: needs a prediction a sample, got {len(predictions)} for {len(samples)}; pass None if missing"
        )
