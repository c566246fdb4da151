"""Evaluating grounded video question answering: benchmarks, metrics, and running a model over annotated samples."""

from zoomzero.evaluation.run import (
    Evaluation,
    EvaluationStopped,
    Prediction,
    evaluate,
    load_annotations,
    load_benchmark,
    metrics,
    nextgqa_metrics,
)

__all__ = [
    "Evaluation",
    "EvaluationStopped",
    "Prediction",
    "evaluate",
    "load_annotations",
    "load_benchmark",
    "metrics",
    "nextgqa_metrics",
]
