"""Evaluating grounded video question answering: metrics, and running a model over annotated samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from zoomzero.annotations import Sample, load_annotations
from zoomzero.engine import Answer, Query, ZoomZero
from zoomzero.intervals import iog, iop, iou
from zoomzero.video import VideoError

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
IOP_THRESHOLDS = (0.3, 0.5)
BENCHMARKS = ("nextgqa",)

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
    coarse_accuracy: share of samples whose coarse pass answered rightly; metrics: of the final answers, see `metrics`.
    """

    answers: list[Answer | None]
    skipped: list[tuple[int, str]]
    coarse_accuracy: float
    metrics: dict[str, float]


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
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answer all samples and measure.

    Args:
        engine: the model.
        samples: from `load_benchmark` or `load_annotations`.
        strategy, budget_tokens, max_new_tokens: as `ZoomZero.answer`.
        batch_size: samples that share a forward; results do not depend on it beyond rounding.
        max_skipped_fraction: share of samples whose video may be unreadable; they count as wrong and are listed.
        on_progress: called as on_progress(done, total).

    Raises:
        VideoError: more samples than allowed were unreadable; names the last.
    """
    if not samples:
        raise ValueError("evaluate: needs at least one sample, got none; check the annotation file")
    answers: list[Answer | None] = []
    skipped: list[tuple[int, str]] = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        queries = [Query(sample.video, sample.question, sample.options) for sample in batch]
        for offset, result in enumerate(_answers(engine, queries, strategy, budget_tokens, max_new_tokens)):
            if isinstance(result, VideoError):
                skipped.append((start + offset, str(result)))
                if len(skipped) > max_skipped_fraction * len(samples):
                    raise result
            answers.append(None if isinstance(result, VideoError) else result)
        if on_progress is not None:
            on_progress(len(answers), len(samples))
    predictions = [None if answer is None else Prediction(answer.letter, answer.spans) for answer in answers]
    coarse = [
        answer is not None and answer.passes[0].letter == sample.answer
        for sample, answer in zip(samples, answers, strict=True)
    ]
    return Evaluation(answers, skipped, _mean(coarse), metrics(samples, predictions))


def _answers(
    engine: ZoomZero, queries: Sequence[Query], strategy: str, budget_tokens: int | None, max_new_tokens: int
) -> list[Answer | VideoError]:
    """Answers of a batch; if a video of it is unreadable, of each query on its own."""
    try:
        return list(engine.answer_batch(queries, strategy, budget_tokens, max_new_tokens=max_new_tokens))
    except VideoError as error:
        if len(queries) == 1:
            return [error]
        return [_answers(engine, [query], strategy, budget_tokens, max_new_tokens)[0] for query in queries]


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
