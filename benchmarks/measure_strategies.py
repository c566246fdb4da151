"""The strategies measured against each other, as docs/results.md planned it before any of them was measured.

Two sets of synthetic clips, one question per clip, answered by the package's own tiny checkpoint; the hard one also by
the checkpoint of train_long_checkpoint.py. Their weights must have the digests below. Every answer is one JSON line in
<out>/<model>/<set>/<strategy>/answers.jsonl, on disk as soon as it is there; a run that was stopped goes on where it
was. The tables go to benchmarks/results/strategies.json.

    python benchmarks/measure_strategies.py [--out runs/strategies] [--clips .cache/strategies]
        [--long runs/long_checkpoint] [--limit N]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import print_table, write_results
from tqdm import tqdm

from zoomzero.annotations import Sample
from zoomzero.answering.engine import ZoomZero
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.evaluation import AnswerRecord, evaluate
from zoomzero.evaluation.bootstrap import mean_intervals
from zoomzero.evaluation.metrics import question_figures
from zoomzero.intervals import intersection
from zoomzero.synthetic import make_clips, tiny_checkpoint

WEIGHTS_SHA256 = {
    "built-in": "fefca03440b499f95c326eafc4cbf5c9c298fa6ca24f9820dce01365739dcc05",
    "long": "f94d0f9b2a52341dcc1711efb01dda967624161204e9e1ef76e95a791d934ab6",
}
MAX_NEW_TOKENS = 80
BATCH_SIZE = 20
NUM_RESAMPLES = 2000
# The hard set grows by this many clips until enough first passes missed the evidence.
MORE_CLIPS, MIN_MISSED = 100, 60
BASELINE = "coarse_to_fine"
FIGURES = ("Acc", "mIoU", "mIoP", "Acc@GQA")


@dataclasses.dataclass(frozen=True)
class MeasuredSet:
    """A set of clips; one question per clip is asked, the two signs in turn."""

    name: str
    seed: int
    count: int
    duration: float = 32.0
    appearances: tuple[int, int] = (1, 1)

    def samples(self, folder: Path, count: int) -> list[Sample]:
        """The questions of the first `count` clips, which are made where they are not there."""
        with tqdm(total=count, desc=f"{self.name} clips", unit="clip") as bar:
            clips = make_clips(
                folder / self.name,
                count,
                seed=self.seed,
                duration=self.duration,
                appearances=self.appearances,
                workers=1,
                on_progress=lambda done, _: bar.update(done - bar.n),
            )
        asked = [(clip, clip.questions[place % 2]) for place, clip in enumerate(clips)]
        return [
            Sample(str(clip.path), one.question, one.options, one.answer, one.spans, clip.duration)
            for clip, one in asked
        ]


# The demo's held-out clips, and longer ones in which each sign is shown several times.
SETS = (MeasuredSet("demo", 400, 300), MeasuredSet("hard", 500, 200, 300.0, (2, 3)))


def missed(sample: Sample, answer: AnswerRecord) -> bool:
    """Whether the first pass of coarse_to_fine named no span, or spans that share no moment with the evidence."""
    zoom = next(look for look in answer.passes if look.name == "zoom")
    return not intersection(zoom.looked_at, sample.spans)


def recovered(sample: Sample, answer: AnswerRecord) -> bool:
    """Whether the answer is right and its evidence shares a moment with the true evidence."""
    return sample.is_right(answer.letter) and intersection(answer.spans, sample.spans) > 0


def answered(engine: ZoomZero, samples: Sequence[Sample], strategy: str, folder: Path) -> list[AnswerRecord]:
    """Answers to all samples; those that lie in the folder are not made again."""
    with tqdm(total=len(samples), desc=strategy, unit="question") as bar:
        result = evaluate(
            engine,
            samples,
            strategy=strategy,
            batch_size=BATCH_SIZE,
            max_new_tokens=MAX_NEW_TOKENS,
            time_limit=None,
            run_folder=folder,
            on_progress=lambda done, _: bar.update(done - bar.n),
        )
    return [answer for answer in result.answers if answer is not None]


def rows(
    model: str, name: str, samples: Sequence[Sample], answers: dict[str, list[AnswerRecord]]
) -> list[dict[str, Any]]:
    """One row per strategy: means, and the middle 95 % of their bootstrap resamples."""
    lost = [missed(sample, answer) for sample, answer in zip(samples, answers[BASELINE], strict=True)]
    base = np.array([answer.cost["flops"] for answer in answers[BASELINE]])
    found = []
    for strategy, given in answers.items():
        figures = question_figures(samples, [answer.prediction for answer in given])
        columns: dict[str, Sequence[float]] = {figure: figures[figure] for figure in FIGURES}
        flops = [answer.cost["flops"] for answer in given]
        columns |= {"visual_tokens": [answer.cost["visual_tokens"] for answer in given]}
        columns |= {"seconds": [answer.cost["seconds"] for answer in given], "flops": flops}
        columns["passes"] = [float(len(answer.passes)) for answer in given]
        back = [
            float(recovered(sample, answer))
            for sample, answer, is_lost in zip(samples, given, lost, strict=True)
            if is_lost
        ]
        row = {
            "model": model,
            "set": name,
            "strategy": strategy,
            "num_questions": len(samples),
            "num_missed": sum(lost),
        }
        row |= _with_intervals(columns) | _with_intervals({"recovered": back})
        row |= {"cost_ratio": float(np.mean(flops) / base.mean()), "cost_ratio_95": _ratio_interval(flops, base)}
        found.append(row)
    return found


def _with_intervals(columns: dict[str, Sequence[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    intervals = mean_intervals(columns, num_resamples=NUM_RESAMPLES)
    for column, values in columns.items():
        found[column] = float(np.mean(values)) if values else None
        found[f"{column}_95"] = list(intervals[column]) if column in intervals else None
    return found


def _ratio_interval(costs: Sequence[float], base: np.ndarray) -> list[float]:
    """Of the ratio of mean costs, the questions resampled in pairs."""
    drawn = np.random.default_rng(0).integers(len(base), size=(NUM_RESAMPLES, len(base)))
    ratios = np.asarray(costs)[drawn].mean(axis=1) / base[drawn].mean(axis=1)
    return [float(edge) for edge in np.quantile(ratios, (0.025, 0.975))]


def loaded(name: str, folder: Path) -> ZoomZero:
    """The checkpoint, if it is the planned one."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256[name]:
        raise SystemExit(
            f"measure_strategies: the weights of {name} must have the planned digest {WEIGHTS_SHA256[name]}, got "
            f"{digest}; check out the commit of the plan, or plan anew"
        )
    return ZoomZero.from_pretrained(folder, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the strategies against each other.")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"), help="folder of the answers")
    parser.add_argument("--clips", type=Path, default=Path(".cache/strategies"), help="folder of the clips")
    parser.add_argument("--long", type=Path, default=Path("runs/long_checkpoint"), help="of train_long_checkpoint.py")
    parser.add_argument("--limit", type=int, help="clips of each set, to try the script; writes no result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for name, folder, sets in (("built-in", tiny_checkpoint(), SETS), ("long", options.long, SETS[1:])):
        engine = loaded(name, folder)
        for one in sets:
            out, count = options.out / name / one.name, options.limit or one.count
            while True:
                samples = one.samples(options.clips, count)
                base = answered(engine, samples, BASELINE, out / BASELINE)
                num_missed = sum(map(missed, samples, base))
                if one.name != "hard" or num_missed >= MIN_MISSED or options.limit:
                    break
                count += MORE_CLIPS
            answers = {strategy: answered(engine, samples, strategy, out / strategy) for strategy in STRATEGIES}
            table += rows(name, one.name, samples, answers)
    print_table([{key: value for key, value in row.items() if not key.endswith("_95")} for row in table])
    if not options.limit:
        print(write_results("strategies", table))


if __name__ == "__main__":
    main()
