"""Evaluating grounded video question answering: benchmarks, metrics, and running a model over annotated samples."""

from zoomzero.annotations import load_annotations, load_benchmark
from zoomzero.evaluation.metrics import (
    Prediction,
    cgbench_metrics,
    metric_intervals,
    metrics,
    metrics_by,
    nextgqa_metrics,
    rextime_metrics,
    task_average,
)
from zoomzero.evaluation.processes import Processes, join_launch
from zoomzero.evaluation.records import AnswerRecord, Evaluation, EvaluationStopped
from zoomzero.evaluation.run import evaluate
from zoomzero.evaluation.settings import EvaluationSettings
from zoomzero.evaluation.summary import official_metrics, summarize, write_summary

__all__ = [
    "AnswerRecord",
    "Evaluation",
    "EvaluationSettings",
    "EvaluationStopped",
    "Prediction",
    "Processes",
    "cgbench_metrics",
    "evaluate",
    "join_launch",
    "load_annotations",
    "load_benchmark",
    "metric_intervals",
    "metrics",
    "metrics_by",
    "nextgqa_metrics",
    "official_metrics",
    "rextime_metrics",
    "summarize",
    "task_average",
    "write_summary",
]
