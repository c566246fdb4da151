"""The command line: zoomzero demo | answer | train | eval | report | doctor | bench."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Heavy imports (torch, transformers, TRL) happen inside the commands, so that --help answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error that is the input's, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.handler
    # The bars shown are our own; transformers' bar over the weights would stand between answers.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from zoomzero.video import VideoError

    try:
        return command(options)
    except (VideoError, ValueError, TypeError, OSError, ImportError) as error:
        print(f"zoomzero {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoomzero", description="Video-language models that find the evidence before they answer."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_answer(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_report(commands)
    doctor = commands.add_parser("doctor", help="say what this installation can do, and what is missing")
    doctor.set_defaults(handler=_doctor)
    _add_bench(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="answer, train to zoom, answer again, on real files made here")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)")
    demo.add_argument("--clips", type=Path, default=Path(".cache/demo"), help="folder of the clips (%(default)s)")
    demo.add_argument("--steps", type=int, default=80, help="training steps (%(default)s)")
    demo.add_argument("--test-questions", type=int, default=300, help="held-out questions (%(default)s)")
    demo.set_defaults(handler=_demo)


def _demo(options: argparse.Namespace) -> int:
    from zoomzero.demo import DemoOptions, run_demo

    run_demo(DemoOptions(out=options.out, clips=options.clips, steps=options.steps, num_test=options.test_questions))
    return 0


def _add_answer(commands: Any) -> None:
    answer = commands.add_parser("answer", help="answer a multiple-choice question about a video")
    answer.add_argument("video", type=Path, help="the video file")
    answer.add_argument("question")
    answer.add_argument("--options", nargs="+", required=True, metavar="TEXT", help="2 to 6 possible answers")
    answer.add_argument("--model", help="checkpoint; the tiny model of the package unless told")
    answer.add_argument("--strategy", default="coarse_to_fine", help="single or coarse_to_fine (%(default)s)")
    answer.add_argument("--budget-tokens", type=int, help="visual tokens a pass; the checkpoint's own unless told")
    answer.add_argument("--device", help="cpu, cuda, ...")
    answer.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    answer.set_defaults(handler=_answer)


def _answer(options: argparse.Namespace) -> int:
    # Opened before the model is loaded: a wrong path should not take seconds to tell.
    from zoomzero.video import open_video

    with open_video(options.video) as video:
        from zoomzero.answering.engine import ZoomZero

        engine = ZoomZero.from_pretrained(options.model, options.device)
        answer = engine.answer(
            video, options.question, options.options, strategy=options.strategy, budget_tokens=options.budget_tokens
        )
    if options.json:
        print(json.dumps(answer.as_dict(), indent=1))
        return 0
    for look in answer.passes:
        height, width = look.plan.size
        frames = f"{len(look.plan.timestamps)} frames of {width}x{height}, {look.plan.num_tokens} visual tokens"
        print(f"{look.name:>6} pass: {frames}\n             {' '.join(look.text.split())}")
    spans = ", ".join(f"{start:g}-{end:g} s" for start, end in answer.spans) or "none named"
    print(f"evidence: {spans}")
    if answer.letter is None:
        print("answer: none (the response holds no letter of an option)")
    else:
        text = options.options["ABCDEF".index(answer.letter)]
        print(f"answer: ({answer.letter}) {text}, confidence {answer.confidence:.2f}")
    return 0


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="GRPO with the zoom reward on a NExT-GQA-style annotation file")
    train.add_argument("annotations", type=Path, help="JSON list of questions; the videos lie beside it")
    train.add_argument("--model", help="start checkpoint; the tiny model of the package unless told")
    train.add_argument("--video-root", type=Path, help="folder of the videos, if not beside the annotations")
    train.add_argument("--out", type=Path, required=True, help="folder of the trained checkpoint")
    train.add_argument("--steps", type=int, default=80, help="training steps (%(default)s)")
    train.add_argument("--prompts", type=int, default=8, help="prompts a step (%(default)s)")
    train.add_argument("--rollouts", type=int, default=8, help="responses a prompt (%(default)s)")
    train.add_argument("--learning-rate", type=float, default=1e-6, help="(%(default)s; the tiny model wants 3e-4)")
    train.add_argument("--max-new-tokens", type=int, default=512, help="longest response (%(default)s)")
    train.add_argument("--beta", type=float, default=0.01, help="weight of the KL term (%(default)s)")
    train.add_argument("--credit", default="token_adv", help="token_adv or uniform (%(default)s)")
    train.add_argument("--normalize", default="segments", help="tokens, segments, rewards, sequence (%(default)s)")
    train.add_argument("--no-zoom-reward", action="store_true", help="leave the zoom reward out")
    train.add_argument("--train-vision", action="store_true", help="train the vision tower as well")
    train.add_argument("--seed", type=int, default=0)
    _add_video_limits(train)
    train.set_defaults(handler=_train)


def _train(options: argparse.Namespace) -> int:
    from zoomzero.annotations import load_annotations

    samples = load_annotations(options.annotations, options.video_root)
    from zoomzero.training.run import TrainOptions, train

    train(
        options.model,
        samples,
        TrainOptions(
            out=options.out,
            steps=options.steps,
            num_prompts=options.prompts,
            num_rollouts=options.rollouts,
            learning_rate=options.learning_rate,
            max_new_tokens=options.max_new_tokens,
            beta=options.beta,
            credit=options.credit,
            advantage_normalize=options.normalize,
            zoom_reward=not options.no_zoom_reward,
            freeze_vision=not options.train_vision,
            video_time_limit=options.time_limit or None,
            max_skipped_fraction=options.max_skipped_fraction,
            seed=options.seed,
        ),
    )
    print(f"checkpoint: {options.out}")
    return 0


def _add_eval(commands: Any) -> None:
    evaluate = commands.add_parser("eval", help="answer a NExT-GQA-style annotation file and measure")
    evaluate.add_argument("annotations", type=Path, help="JSON list of questions; the videos lie beside it")
    evaluate.add_argument("--model", help="checkpoint; the tiny model of the package unless told")
    evaluate.add_argument("--video-root", type=Path, help="folder of the videos, if not beside the annotations")
    evaluate.add_argument("--strategy", default="coarse_to_fine", help="single or coarse_to_fine (%(default)s)")
    evaluate.add_argument("--budget-tokens", type=int, help="visual tokens a pass; the checkpoint's own unless told")
    evaluate.add_argument("--batch-size", type=int, default=8, help="questions a forward (%(default)s)")
    evaluate.add_argument("--max-new-tokens", type=int, default=512, help="longest response (%(default)s)")
    evaluate.add_argument("--limit", type=int, help="only the first so many questions")
    evaluate.add_argument("--device", help="cpu, cuda, ...")
    evaluate.add_argument("--out", type=Path, help="also write the figures as JSON")
    evaluate.add_argument(
        "--run", type=Path, help="folder of answers.jsonl and skipped.jsonl (runs/eval/ and the time of the start)"
    )
    _add_video_limits(evaluate)
    evaluate.set_defaults(handler=_eval)


def _add_video_limits(command: Any) -> None:
    command.add_argument(
        "--max-skipped-fraction", type=float, default=0.05, metavar="SHARE",
        help="stop when the videos of more than this share of the questions are unreadable (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--time-limit", type=float, default=120.0, metavar="SECONDS",
        help="stop a decoder that gives no sign of life for so long and skip its video; 0 decodes in this process "
        "(%(default)g)",
    )  # fmt: skip


def _eval(options: argparse.Namespace) -> int:
    from zoomzero.annotations import load_annotations

    samples = load_annotations(options.annotations, options.video_root)[: options.limit]
    from tqdm import tqdm

    from zoomzero.answering.engine import ZoomZero
    from zoomzero.evaluation import Prediction, evaluate, nextgqa_metrics

    engine = ZoomZero.from_pretrained(options.model, options.device)
    run = options.run or Path("runs/eval") / time.strftime("%Y%m%d-%H%M%S")
    print(f"answers and skipped samples: {run}", file=sys.stderr)
    with tqdm(total=len(samples), unit="question") as bar:
        result = evaluate(
            engine,
            samples,
            strategy=options.strategy,
            budget_tokens=options.budget_tokens,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            max_skipped_fraction=options.max_skipped_fraction,
            time_limit=options.time_limit or None,
            run_folder=run,
            on_progress=lambda done, _: bar.update(done - bar.n),
        )
    predictions = [None if answer is None else Prediction(answer.letter, answer.spans) for answer in result.answers]
    official = nextgqa_metrics(samples, predictions)
    for name, value in {**result.metrics, "Acc (coarse pass)": result.coarse_accuracy}.items():
        print(f"{name:20}{value:10.3f}")
    print(f"{'official NExT-GQA':20}" + "  ".join(f"{name} {value:.3f}" for name, value in official.items()))
    for index, reason in result.skipped:
        print(f"skipped {samples[index].video}: {reason}")
    if options.out is not None:
        figures = {"metrics": result.metrics, "coarse_accuracy": result.coarse_accuracy, "nextgqa": official}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**figures, "skipped": result.skipped}, indent=1) + "\n", encoding="utf-8")
    return 0


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="print the summary of a demo's run and where its page is")
    report.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"), help="folder of the run (%(default)s)")
    report.set_defaults(handler=_report)


def _report(options: argparse.Namespace) -> int:
    file = options.run / "summary.json"
    if not file.exists():
        raise ValueError(f"{file}: no summary there; run `zoomzero demo` first, or name the folder of a run")
    print(file.read_text(encoding="utf-8"))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from zoomzero.cli.doctor import report

    for line in report():
        print(line)
    return 0


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="run the microbenchmarks of a source checkout")
    bench.add_argument(
        "--folder", type=Path, default=Path("benchmarks"), help="the checkout's benchmarks (%(default)s)"
    )
    bench.set_defaults(handler=_bench)


def _bench(options: argparse.Namespace) -> int:
    import subprocess

    scripts = sorted(options.folder.glob("bench_*.py"))
    if not scripts:
        raise ValueError(f"{options.folder}: no benchmarks there; run this in a checkout of the repository")
    return max(subprocess.run([sys.executable, str(script)], check=False).returncode for script in scripts)
