"""A training's folder as it lies on disk: the figures of every step and sampled responses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoomzero.rewards import REWARDS
from zoomzero.training.run_log import METRICS_FILE, SAMPLES_FILE

# A page holds no more sampled steps than one looks through; they are chosen evenly.
MAX_SAMPLED_STEPS = 40


def is_training(folder: Path) -> bool:
    """Whether a folder holds the log of a training."""
    return (folder / METRICS_FILE).is_file()


def read_training(folder: Path, name: str) -> dict[str, Any]:
    """A training for the page: name, series by metric as [step, value] pairs, samples; see the schema in data.py."""
    series: dict[str, dict[int, float]] = {}
    for entry in _lines(folder / METRICS_FILE):
        for metric, value in entry.items():
            if metric not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value):
                # A resumed run writes some steps again.
                series.setdefault(metric, {})[int(entry["step"])] = float(value)
    samples = {int(entry["step"]): _sampled(entry) for entry in _lines(folder / SAMPLES_FILE)}
    steps = sorted(samples)
    if len(steps) > MAX_SAMPLED_STEPS:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_SAMPLED_STEPS - 1))] for i in range(MAX_SAMPLED_STEPS)]
    return {
        "name": name,
        "series": {metric: sorted(map(list, values.items())) for metric, values in series.items()},
        "samples": [samples[step] for step in steps],
    }


def _sampled(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": int(entry["step"]),
        "question": str(entry["question"]),
        "answer": str(entry["answer"]),
        "spans": [[float(start), float(end)] for start, end in entry["spans"]],
        "responses": [
            {
                "rewards": {name: float(response["rewards"][name]) for name in REWARDS},
                "tokens": [str(token) for token in response["tokens"]],
                "segments": [int(segment) for segment in response["segments"]],
                "advantages": [round(float(advantage), 4) for advantage in response["advantages"]],
            }
            for response in entry["responses"]
        ],
    }


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; the last one may be cut where the process died."""
    for line in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            entry = json.loads(line)
            int(entry["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        yield entry
