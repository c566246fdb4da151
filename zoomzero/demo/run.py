"""The demo's run: make clips, measure, train, measure again, and write the page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from zoomzero.annotations import Sample
from zoomzero.answering.engine import ZoomZero
from zoomzero.demo.options import DemoOptions
from zoomzero.evaluation import AnswerRecord, Evaluation, evaluate
from zoomzero.files import write_whole
from zoomzero.report import read_report, write_report
from zoomzero.report.data import DEMO_EVALUATIONS, DEMO_TRAINING
from zoomzero.synthetic import Clip, make_clips, tiny_checkpoint
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.run import train, train_config

TRAIN_SEED, TEST_SEED = 300, 400
MAX_NEW_TOKENS = 40
NUM_VERBOSE = 3
# Below these differences (the acceptance of the demo) something is broken, whatever the machine.
MIN_MIOU_GAIN = 0.10
MIN_ZOOM_GAIN = 0.40

EXAMPLES_NOTE = (
    "Chosen, not drawn at random: questions that the start model got wrong come first, for they are what training is "
    "for. The table counts all questions."
)

TITLE = "zoomzero: find the evidence, then answer"
LEAD = (
    "A tiny Qwen2.5-VL model sees a whole clip in 32 visual tokens: enough to see when a coloured sign is shown, not "
    "to read it. It names the span, looks again at that span with its 32 tokens, and reads. GRPO with the zoom reward "
    "taught it to name spans that are worth zooming into. Held-out questions on real H.264 files, with four options "
    "each: chance is 25 %."
)
PAGE_BYTES = 12_000_000


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the demo and return what it writes to `out`/summary.json; the page is `out`/index.html."""
    started = time.perf_counter()
    train_clips, test_clips = _make_all_clips(options)
    train_set = _samples(train_clips)
    # One question a clip, the two signs in turn.
    test_set = _samples(test_clips)[: 2 * options.num_test]
    test_set = [test_set[2 * i + i % 2] for i in range(options.num_test)]

    start = ZoomZero.from_pretrained(tiny_checkpoint())
    before = _measure(start, test_set, DEMO_EVALUATIONS[0], options)
    trained, history = train(start, train_set, _train_config(options), start_over=True)
    after = _measure(trained, test_set, DEMO_EVALUATIONS[1], options)
    with _Bar("frames for the page", "video") as progress:
        # The clips are of this run's own making: no decoder needs a process of its own.
        report = read_report(
            [options.out], title=TITLE, lead=LEAD, max_bytes=PAGE_BYTES, time_limit=None, on_progress=progress
        )
    page = write_report(report, options.out / "index.html")
    seconds = time.perf_counter() - started
    summary = {
        "before": _figures(before),
        "after": _figures(after),
        "seconds": round(seconds, 1),
        "report": str(page),
    }
    write_whole(options.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_whole(options.out / "history.json", json.dumps(history, indent=1) + "\n")
    _print_outcome(_examples(test_set, before, after), summary)
    return summary


def _train_config(options: DemoOptions) -> ZoomZeroConfig:
    return train_config(
        options.out / DEMO_TRAINING,
        steps=options.steps,
        prompts=options.num_prompts,
        num_generations=options.num_rollouts,
        learning_rate=options.learning_rate,
        max_completion_length=MAX_NEW_TOKENS,
        seed=0,
    )


def _make_all_clips(options: DemoOptions) -> tuple[list[Clip], list[Clip]]:
    num_train = max(1, options.steps * options.num_prompts // 2)
    sets = []
    for name, count, seed in (("train", num_train, TRAIN_SEED), ("test", options.num_test, TEST_SEED)):
        with _Bar(f"{name} clips", "clip") as progress:
            sets.append(make_clips(options.clips / name, count, seed=seed, on_progress=progress))
    return sets[0], sets[1]


def _samples(clips: Sequence[Clip]) -> list[Sample]:
    return [
        Sample(str(clip.path), question.question, question.options, question.answer, question.spans, clip.duration)
        for clip in clips
        for question in clip.questions
    ]


def _measure(engine: ZoomZero, samples: Sequence[Sample], label: str, options: DemoOptions) -> Evaluation:
    folder = options.out / label
    # Answers of an earlier demo are by other weights.
    shutil.rmtree(folder, ignore_errors=True)
    with _Bar(f"answering ({label})", "question") as progress:
        return evaluate(
            engine, samples, batch_size=50, max_new_tokens=MAX_NEW_TOKENS, run_folder=folder, on_progress=progress
        )


Example = tuple[Sample, AnswerRecord, AnswerRecord]


def _examples(samples: Sequence[Sample], before: Evaluation, after: Evaluation) -> list[Example]:
    """The questions to print: those the start model gets wrong come first, since they are what training is for."""
    rows = zip(samples, before.answers, after.answers, strict=True)
    answered = [(sample, first, second) for sample, first, second in rows if first is not None and second is not None]
    return sorted(answered, key=lambda row: row[1].letter == row[0].answer)[:NUM_VERBOSE]


def _figures(evaluation: Evaluation) -> dict[str, float]:
    return {
        "miou": round(evaluation.metrics["mIoU"], 4),
        "coarse_accuracy": round(evaluation.coarse_accuracy, 4),
        "zoom_accuracy": round(evaluation.metrics["Acc"], 4),
    }


def _print_outcome(examples: Sequence[Example], summary: Mapping[str, Any]) -> None:
    print(f"\n{EXAMPLES_NOTE}")
    for sample, *answers in examples:
        print(f"\n{sample.question}  (right: {sample.answer}, shown {_seconds(sample.spans)})")
        for label, answer in zip(DEMO_EVALUATIONS, answers, strict=True):
            coarse, zoom = answer.passes[0], answer.passes[-1]
            print(
                f"  {label:>6}: whole video says {coarse.letter} and looks at {_seconds(answer.spans)}; "
                f"zoomed says {zoom.letter} ({zoom.confidence:.2f})"
            )
    print(f"\n{'':24}{'before':>8}{'after':>8}")
    for key, name in (
        ("miou", "span IoU"),
        ("coarse_accuracy", "accuracy, coarse"),
        ("zoom_accuracy", "accuracy, zoomed"),
    ):
        print(f"{name:24}{summary['before'][key]:8.3f}{summary['after'][key]:8.3f}")
    for problem in check_outcome(summary):
        print(f"Not what a run of the usual size gives: {problem}")
    print(f"\n{summary['seconds']:.0f} seconds. Open {summary['report']}")


def _seconds(spans: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{start:g}-{end:g} s" for start, end in spans) or "no span"


class _Bar:
    """A progress bar that is called as on_progress(done, total)."""

    def __init__(self, label: str, unit: str) -> None:
        self._bar = tqdm(desc=label, unit=unit)

    def __enter__(self) -> Callable[[int, int], None]:
        return self._advance

    def _advance(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def check_outcome(summary: Mapping[str, Any]) -> list[str]:
    """What is wrong with a demo's outcome, in words; empty when it learned to zoom."""
    before, after = summary["before"], summary["after"]
    problems = []
    if after["miou"] < before["miou"] + MIN_MIOU_GAIN:
        problems.append(f"mIoU rose from {before['miou']} to {after['miou']}, expected at least +{MIN_MIOU_GAIN}")
    if after["zoom_accuracy"] < after["coarse_accuracy"] + MIN_ZOOM_GAIN:
        problems.append(
            f"zooming answers {after['zoom_accuracy']}, the whole video {after['coarse_accuracy']}, expected at least "
            f"+{MIN_ZOOM_GAIN}"
        )
    return problems
