"""`zoomzero eval`: answer the questions of a benchmark, or one's own, and measure."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomzero.cli.model_options import add_model_options, answer_options, load, model_options, prompts_of
from zoomzero.cli.row_limits import add_row_limits, row_limits
from zoomzero.cli.video_limits import add_video_limits
from zoomzero.limits import NUM_DECODERS
from zoomzero.text import escaped

if TYPE_CHECKING:
    from zoomzero.annotations import Sample
    from zoomzero.evaluation import Evaluation

# Missing videos that --check names; it counts all.
NUM_SHOWN = 10


def add(commands: Any) -> None:
    """Add the command and its options."""
    evaluate = commands.add_parser("eval", help="answer a benchmark, or questions of your own, and measure")
    evaluate.add_argument("annotations", type=Path, nargs="?", help="your questions: a JSON list or JSON Lines")
    evaluate.add_argument("--benchmark", metavar="NAME", help="nextgqa, rextime, cgbench, videomme, mlvu or lvbench")
    evaluate.add_argument("--root", type=Path, help="folder of the benchmark's files as its authors publish them")
    evaluate.add_argument("--split", default="test", help="test, val or, for cgbench, mini (%(default)s)")
    evaluate.add_argument("--video-root", type=Path, help="folder of the videos, if not beside the annotations")
    evaluate.add_argument("--check", action="store_true", help="count questions and videos, and load no model")
    evaluate.add_argument("--limit", type=int, help="only the first so many questions")
    evaluate.add_argument("--subtitles", action="store_true", help="put the benchmark's subtitles into the prompts")
    add_model_options(evaluate)
    evaluate.add_argument("--batch-size", type=int, default=8, help="questions per forward (%(default)s)")
    evaluate.add_argument(
        "--num-decoders", type=int, default=NUM_DECODERS,
        help="videos read side by side, each in a decoding process of its own (%(default)s)",
    )  # fmt: skip
    evaluate.add_argument("--out", type=Path, help="also write the figures as JSON")
    evaluate.add_argument(
        "--run", type=Path, help="folder of the run, resumed if it holds answers (runs/eval/ and the time of the start)"
    )
    add_row_limits(evaluate)
    add_video_limits(evaluate)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    # What is wrong with the options is told before files are read, and a model loaded.
    answers, prompts, _ = answer_options(options, options.num_decoders), prompts_of(options), model_options(options)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}; leave it out for all questions")
    samples = _samples(options)
    if options.check:
        return _check(samples)
    from tqdm import tqdm

    from zoomzero.annotations import write_submission
    from zoomzero.evaluation import EvaluationSettings, evaluate, join_launch, write_summary
    from zoomzero.files import check_writable, write_whole

    if options.out is not None:
        check_writable(options.out)
    settings = EvaluationSettings(
        answers,
        options.batch_size,
        options.subtitles,
        options.max_skipped_fraction,
        options.time_limit or None,
    )
    processes = join_launch()
    if processes.count > 1 and options.run is None:
        raise ValueError(f"{processes.count} processes need one folder to share, got no --run; name it")
    engine = load(options, prompts, num_questions=options.batch_size, device=processes.device())
    folder = options.run or Path("runs/eval") / time.strftime("%Y%m%d-%H%M%S")
    if processes.is_first:
        print(f"answers, skipped samples and figures: {folder}", file=sys.stderr)
    with tqdm(total=len(samples), unit="question", disable=not processes.is_first) as bar:
        result = evaluate(
            engine,
            samples,
            settings,
            run_folder=folder,
            processes=processes,
            on_progress=functools.partial(_advance, bar),
        )
    if not processes.is_first:
        return 0
    summary = write_summary(folder, samples, result, options.benchmark)
    if options.benchmark == "rextime":
        write_submission(folder / "submission.jsonl", samples, result.official_predictions)
        print(f"submission: {folder / 'submission.jsonl'}", file=sys.stderr)
    if options.out is not None:
        write_whole(options.out, json.dumps(summary, indent=1) + "\n")
    _print(samples, result, summary)
    return 0


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _samples(options: argparse.Namespace) -> list[Sample]:
    from zoomzero.annotations import load_annotations, load_benchmark

    if options.benchmark is None:
        if options.annotations is None:
            raise ValueError("needs an annotation file, or --benchmark NAME --root DIR, got neither; name one")
        samples = load_annotations(options.annotations, options.video_root, **row_limits(options))
    else:
        if options.annotations is not None or options.root is None:
            raise ValueError("--benchmark needs --root DIR and no annotation file; name the folder of its files")
        samples = load_benchmark(
            options.benchmark, options.root, options.split, video_root=options.video_root, **row_limits(options)
        )
    return samples[: options.limit]


def _check(samples: Sequence[Sample]) -> int:
    """Say what is there; the status is 1 where a video is missing."""
    videos = dict.fromkeys(sample.video for sample in samples)
    missing = [video for video in videos if not Path(video).is_file()]
    print(f"{'questions':20}{len(samples):8d}")
    print(f"{'with evidence':20}{sum(bool(sample.spans) for sample in samples):8d}")
    print(f"{'with subtitles':20}{sum(sample.subtitles is not None for sample in samples):8d}")
    print(f"{'videos found':20}{len(videos) - len(missing):8d}")
    print(f"{'videos missing':20}{len(missing):8d}")
    for video in missing[:NUM_SHOWN]:
        print(f"missing: {escaped(video)}")
    if len(missing) > NUM_SHOWN:
        print(f"and {len(missing) - NUM_SHOWN} more")
    return 1 if missing else 0


def _print(samples: Sequence[Sample], result: Evaluation, summary: Mapping[str, Any]) -> None:
    for name, value in {**result.metrics, "Acc (coarse pass)": result.coarse_accuracy}.items():
        low_high = summary["intervals"].get(name)
        interval = "" if low_high is None else f"   95 % {low_high[0]:.3f} to {low_high[1]:.3f}"
        print(f"{name:20}{value:10.3f}{interval}")
    for title, part in (("official counting", "official"), ("zoom", "zoom"), ("cost per question", "mean_cost")):
        if summary[part]:
            print(f"{title:20}" + "  ".join(f"{name} {value:.4g}" for name, value in summary[part].items()))
    for part in ("by_duration_class", "by_task"):
        for name, figures in summary[part].items():
            if "Acc" in figures:
                print(f"  {escaped(name):30}{figures['num_samples']:6.0f} questions   Acc {figures['Acc']:.3f}")
    print(f"{'waited for frames':20}{result.waited_seconds:10.1f} s")
    for item in result.wrong_durations:
        print(f"annotated as {item.annotated:.1f} s, the file has {item.found:.1f} s: {escaped(item.video)}")
    for index, reason in result.skipped:
        print(f"skipped {escaped(samples[index].video)}: {escaped(reason)}")
    if result.num_resumed or result.num_set_aside:
        print(f"resumed: {result.num_resumed} answers were there, {result.num_set_aside} cut lines were answered again")
