"""Evaluating grounded video question answering: benchmarks, metrics, and running a model over annotated samples."""

from zoomzero.annotations import load_annotations, load_benchmark
from zoomzero.evaluation.metrics import Prediction, metrics, nextgqa_metrics
from zoomzero.evaluation.records import Evaluation, EvaluationStopped
from zoomzero.evaluation.run import evaluate

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
