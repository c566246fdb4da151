"""One run of the ablation, in a process of its own: trains, measures and prints one line of JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import plan
import torch
from transformers import TrainerCallback

from zoomzero.annotations import Sample, load_annotations
from zoomzero.answering.engine import ZoomZero
from zoomzero.evaluation import evaluate
from zoomzero.evaluation.summary import summarize
from zoomzero.intervals import intersection
from zoomzero.synthetic.clips import ANNOTATION_FILE
from zoomzero.training.run import train_config
from zoomzero.training.trainer import ZoomZeroTrainer

FRAMES_PER_SECOND = 4
# What is kept of an evaluation, by where the summary has it.
KEPT = {
    "metrics": ("mIoU", "mIoP", "mIoG", "IoP@0.5", "Acc", "Acc@GQA"),
    "zoom": ("rescued", "broken", "held_evidence", "Acc_held", "Acc_missed"),
    "mean_cost": ("visual_tokens", "text_tokens", "flops"),
}


def with_wrong_spans(samples: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """The samples, a share of them with a span of the same length at another place, which does not touch the true one.

    Every clip of the ablation shows each sign once, so a question has one span.
    """
    rng = random.Random(f"wrong spans/{seed}")
    wrong = set(rng.sample(range(len(samples)), round(share * len(samples))))
    return [
        dataclasses.replace(sample, spans=(_elsewhere(sample, rng),)) if index in wrong else sample
        for index, sample in enumerate(samples)
    ]


def _elsewhere(sample: Sample, rng: random.Random) -> tuple[float, float]:
    ((start, end),) = sample.spans
    assert sample.duration is not None
    last = round((sample.duration - (end - start)) * FRAMES_PER_SECOND)
    while True:
        moved = rng.randint(0, last) / FRAMES_PER_SECOND
        if intersection([(moved, moved + end - start)], sample.spans) == 0:
            return moved, moved + end - start


def held_out(clips: Path) -> list[Sample]:
    """One question a clip, its two signs in turn."""
    samples = load_annotations(clips / "test" / ANNOTATION_FILE)
    return [samples[2 * clip + clip % 2] for clip in range(plan.NUM_TEST_CLIPS)]


def figures(engine: ZoomZero, samples: Sequence[Sample]) -> dict[str, float]:
    """The kept figures of the engine on the samples."""
    result = evaluate(engine, samples, batch_size=50, max_new_tokens=plan.MAX_NEW_TOKENS, time_limit=None, read_ahead=1)
    summary = summarize(samples, result)
    kept = {name: summary[part][name] for part, names in KEPT.items() for name in names if name in summary[part]}
    return {name: round(value, 4) for name, value in {"coarse_Acc": result.coarse_accuracy, **kept}.items()}


class Measure(TrainerCallback):
    """Measures the model on the held-out clips after some of the steps."""

    def __init__(self, engine: ZoomZero, samples: Sequence[Sample], steps: Sequence[int]) -> None:
        self._engine, self._samples, self._steps = engine, samples, steps
        self.measured: dict[int, dict[str, float]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The start model is measured where step 0 is asked for."""
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure after this step, if it is one of them; training goes on as if nothing had happened."""
        if state.global_step in self._steps:
            with torch.random.fork_rng():
                self._engine.model.eval()
                self.measured[state.global_step] = figures(self._engine, self._samples)
                self._engine.model.train()


def train_and_measure(run: plan.Run, start: Path | None, clips: Path, out: Path, keep: Path | None) -> dict[str, Any]:
    """The run's line: what it was, its figures by step, and what it cost."""
    arm = plan.ARMS[run.arm]
    samples = load_annotations(clips / "train" / ANNOTATION_FILE)
    samples = with_wrong_spans(samples, plan.LABELS[run.labels], run.seed)
    engine = ZoomZero.from_pretrained(start)
    measure = Measure(engine, held_out(clips), run.measured_after)
    config = train_config(
        out,
        steps=run.measured_after[-1],
        prompts=plan.PROMPTS,
        num_generations=plan.ROLLOUTS,
        learning_rate=plan.LEARNING_RATE,
        max_completion_length=plan.MAX_NEW_TOKENS,
        credit=arm.credit,
        advantage_normalize=arm.normalize,
        zoom_reward=arm.zoom,
        video_time_limit=None,
        seed=run.seed,
    )
    begun, rows = time.process_time(), [dataclasses.asdict(sample) for sample in samples]
    model: Any = engine.model
    ZoomZeroTrainer(model, config, rows, processing_class=engine.processor, callbacks=[measure]).train()
    if keep is not None:
        engine.model.save_pretrained(keep)
        engine.processor.save_pretrained(keep)
    return {
        **dataclasses.asdict(run),
        "figures": measure.measured,
        "cpu_seconds": round(time.process_time() - begun),
        "versions": {name: metadata.version(name) for name in ("zoomzero", "torch", "transformers", "trl")},
    }


def main(request: str) -> None:
    """request: JSON with run, start, clips and keep, as `run_all` writes it."""
    torch.set_num_threads(1)
    asked = json.loads(request)
    start, keep = (None if asked[name] is None else Path(asked[name]) for name in ("start", "keep"))
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        line = train_and_measure(plan.Run(**asked["run"]), start, Path(asked["clips"]), Path(scratch), keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1])
