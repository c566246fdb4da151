"""The demo's run: make clips, measure, train, measure again, and write the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from zoomzero.annotations import Sample
from zoomzero.answering.engine import Answer, ZoomZero
from zoomzero.demo.options import DemoOptions
from zoomzero.evaluation import Evaluation, evaluate
from zoomzero.files import write_whole
from zoomzero.report import Example, Report, write_page
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

# Shown titles of the training curves, by the trainer's metric names.
CURVES = {
    "reward": "total reward",
    "miou": "span IoU of the rollouts",
    "zoom_accuracy": "zoom reward",
    "rewards/format/mean": "format reward",
    "rewards/answer/mean": "answer reward (coarse)",
    "entropy": "entropy",
}


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Run the demo and return what it writes to `out`/summary.json; the page is `out`/index.html."""
    started = time.perf_counter()
    train_clips, test_clips = _make_all_clips(options)
    train_set = _samples(train_clips)
    # One question a clip, the two signs in turn.
    test_set = _samples(test_clips)[: 2 * options.num_test]
    test_set = [test_set[2 * i + i % 2] for i in range(options.num_test)]

    start = ZoomZero.from_pretrained(tiny_checkpoint())
    before = _measure(start, test_set, "before")
    shown = _differing(test_set, before)
    answers_before = [_ask(start, sample) for sample in shown]
    trained, history = train(start, train_set, _train_config(options), start_over=True)
    after = _measure(trained, test_set, "after")
    answers_after = [_ask(trained, sample) for sample in shown]

    examples = [Example(*row) for row in zip(shown, answers_before, answers_after, strict=True)]
    seconds = time.perf_counter() - started
    page = write_page(_report(options, before, after, history, examples, seconds), options.out / "index.html")
    summary = {
        "before": _figures(before),
        "after": _figures(after),
        "seconds": round(seconds, 1),
        "report": str(page),
    }
    write_whole(options.out / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_whole(options.out / "history.json", json.dumps(history, indent=1) + "\n")
    _print_outcome(examples, summary)
    return summary


def _train_config(options: DemoOptions) -> ZoomZeroConfig:
    return train_config(
        options.out / "checkpoint",
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


def _measure(engine: ZoomZero, samples: Sequence[Sample], label: str) -> Evaluation:
    with _Bar(f"answering ({label})", "question") as progress:
        return evaluate(engine, samples, batch_size=50, max_new_tokens=MAX_NEW_TOKENS, on_progress=progress)


def _differing(samples: Sequence[Sample], before: Evaluation) -> list[Sample]:
    """The questions to show: those the start model gets wrong come first, since they are what training is for."""
    pairs = zip(samples, before.answers, strict=True)
    wrong_first = sorted(pairs, key=lambda pair: pair[1] is not None and pair[1].letter == pair[0].answer)
    return [sample for sample, _ in wrong_first[:NUM_VERBOSE]]


def _ask(engine: ZoomZero, sample: Sample) -> Answer:
    return engine.answer(sample.video, sample.question, sample.options, max_new_tokens=MAX_NEW_TOKENS, keep_frames=True)


def _figures(evaluation: Evaluation) -> dict[str, float]:
    return {
        "miou": round(evaluation.metrics["mIoU"], 4),
        "coarse_accuracy": round(evaluation.coarse_accuracy, 4),
        "zoom_accuracy": round(evaluation.metrics["Acc"], 4),
    }


def _report(
    options: DemoOptions,
    before: Evaluation,
    after: Evaluation,
    history: Sequence[Mapping[str, float]],
    examples: Sequence[Example],
    seconds: float,
) -> Report:
    shown = {"mIoU": "span IoU (mIoU)", "mIoP": "span precision (mIoP)", "Acc": "accuracy after the zoom"}
    rows = {"accuracy at coarse resolution": None, **{name: key for key, name in shown.items()}, "Acc@GQA": "Acc@GQA"}
    tables = [
        {name: result.coarse_accuracy if key is None else result.metrics[key] for name, key in rows.items()}
        for result in (before, after)
    ]
    return Report(
        title="zoomzero: find the evidence, then answer",
        lead=(
            "A tiny Qwen2.5-VL model sees a whole clip in 32 visual tokens: enough to see when a coloured sign is "
            "shown, not to read it. It names the span, looks again at that span with its 32 tokens, and reads. GRPO "
            "with the zoom reward taught it to name spans that are worth zooming into."
        ),
        before=tables[0],
        after=tables[1],
        table_note=(
            f"{options.num_test} held-out questions on real H.264 files; four options, so chance is 0.25. Trained for "
            f"{options.steps} steps of {options.num_prompts} prompts x {options.num_rollouts} rollouts."
        ),
        examples_note=EXAMPLES_NOTE,
        curves={title: [entry[name] for entry in history if name in entry] for name, title in CURVES.items()},
        examples=examples,
        facts=[("seconds in all", f"{seconds:.0f}"), ("checkpoint", str(options.out / "checkpoint"))],
    )


def _print_outcome(examples: Sequence[Example], summary: Mapping[str, Any]) -> None:
    print(f"\n{EXAMPLES_NOTE}")
    for example in examples:
        print(f"\n{example.sample.question}  (right: {example.sample.answer}, shown {_seconds(example.sample.spans)})")
        for label, answer in (("before", example.before), ("after", example.after)):
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
