"""Folders of evaluations and trainings as runs leave them, without a model: answers by dice, frames of real clips."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoomzero.annotations import Sample
from zoomzero.evaluation.questions import write_questions
from zoomzero.evaluation.records import question_keys
from zoomzero.intervals import Span

COST = {"visual_tokens": 32, "text_tokens": 40, "seconds": 0.5, "flops": 1e9}


def made_pass(name: str, letter: str, confidence: float, **more: Any) -> dict[str, Any]:
    """A pass as `Pass.as_dict` gives it: 4 frames of 28x28."""
    base = {
        "name": name, "why": "because", "looked_at": [], "num_frames": 4, "timestamps": [1.0, 2.0, 3.0, 4.0],
        "size": [28, 28], "num_tokens": 32, "text": f"<answer>{letter}</answer>", "letter": letter, "words": None,
        "confidence": confidence, "spans": [], "cost": COST,
    }  # fmt: skip
    return base | more


def made_answer(first: str, final: str, span: Span, looked_at: Span | None = None, **more: Any) -> dict[str, Any]:
    """An answer as `Answer.as_dict` gives it: a coarse pass that names `span`, and a zoom into it or `looked_at`."""
    region = list(looked_at or span)
    passes = [
        made_pass("coarse", first, 0.4, spans=[list(span)]),
        made_pass("zoom", final, 0.8, looked_at=[region], timestamps=[region[0], region[0] + 0.5], num_frames=2),
    ]
    base = {"letter": final, "text": final, "spans": [list(span)], "confidence": 0.8, "passes": passes}
    return base | {"timings": {}, "cost": {name: 2 * value for name, value in COST.items()}} | more


def write_run(folder: Path, samples: Sequence[Sample], answers: Sequence[dict[str, Any] | None]) -> Path:
    """A run's folder with these answers; None where a question has none."""
    folder.mkdir(parents=True)
    write_questions(folder, samples)
    (folder / "run.json").write_text(json.dumps({"model": "m", "strategy": "coarse_to_fine", "budget_tokens": None}))
    lines = [
        json.dumps({"key": key, **answer})
        for key, answer in zip(question_keys(samples), answers, strict=True)
        if answer is not None
    ]
    (folder / "answers.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def many(count: int, video: str, seed: int = 0) -> tuple[list[Sample], list[dict[str, Any] | None]]:
    """Questions on a clip of 32 seconds with answers by dice."""
    dice = random.Random(seed)
    samples, answers = [], []
    for place in range(count):
        start = dice.uniform(0, 20)
        task, words = dice.choice(("when", "who", "why")), " ".join(dice.choices(("red", "man", "door", "before"), k=6))
        samples.append(
            Sample(
                video, f"Question {place}: {words}?", ("yes", "no", "both", "none"), dice.choice("ABCD"),
                ((start, start + 5),), 32.0, f"id{place}", task, dice.choice(("short", "long")),
            )
        )  # fmt: skip
        named = (max(0.0, start + dice.uniform(-4, 4)), start + dice.uniform(4.5, 9))
        answers.append(made_answer(dice.choice("ABCD"), dice.choice("ABCD"), named) if place % 50 else None)
    return samples, answers


def write_training(folder: Path, steps: int = 20) -> Path:
    """A training's folder: the figures of its steps, and responses token by token."""
    folder.mkdir(parents=True)
    metrics, sampled = [], []
    for step in range(1, steps + 1):
        share = step / steps
        metrics.append(
            {"step": step, "reward": share, "reward_std": 0.1, "miou": share, "entropy": 1 - share / 2}
            | {
                f"rewards/{name}/mean": share * weight
                for name, weight in zip(("format", "zoom", "iou", "answer"), (1, 0.9, 0.7, 0.3), strict=True)
            }
            | {f"entropy/{name}": value for name, value in (("rest", 0.2), ("answer", 1.2), ("span", 0.6))}
        )
        response = {
            "rewards": {"format": 1.0, "zoom": 1.0, "iou": 0.5, "answer": 0.0},
            "tokens": ["<answer>", "B", "</answer>", "[(1, 2)]"],
            "segments": [0, 1, 0, 2],
            "advantages": [0.5, -1.0, 0.5, 0.25],
        }
        sampled.append(
            {"step": step, "question": f"Q{step}", "answer": "A", "spans": [[1.0, 2.0]], "responses": [response]}
        )
    for name, rows in (("metrics.jsonl", metrics), ("samples.jsonl", sampled)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
