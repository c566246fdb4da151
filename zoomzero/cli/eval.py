"""`zoomzero eval`: answer an annotation file and measure."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from zoomzero.cli.video_limits import add_video_limits
from zoomzero.limits import MAX_NEW_TOKENS


def add(commands: Any) -> None:
    """Add the command and its options."""
    evaluate = commands.add_parser("eval", help="answer a NExT-GQA-style annotation file and measure")
    evaluate.add_argument("annotations", type=Path, help="JSON list of questions; the videos lie beside it")
    evaluate.add_argument("--model", help="checkpoint; the tiny model of the package unless told")
    evaluate.add_argument("--video-root", type=Path, help="folder of the videos, if not beside the annotations")
    evaluate.add_argument("--strategy", default="coarse_to_fine", help="single or coarse_to_fine (%(default)s)")
    evaluate.add_argument("--budget-tokens", type=int, help="visual tokens a pass; the checkpoint's own unless told")
    evaluate.add_argument("--batch-size", type=int, default=8, help="questions a forward (%(default)s)")
    evaluate.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, help="longest response (%(default)s)")
    evaluate.add_argument("--limit", type=int, help="only the first so many questions")
    evaluate.add_argument("--device", help="cpu, cuda, ...")
    evaluate.add_argument("--out", type=Path, help="also write the figures as JSON")
    evaluate.add_argument(
        "--run", type=Path, help="folder of answers.jsonl and skipped.jsonl (runs/eval/ and the time of the start)"
    )
    add_video_limits(evaluate)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from zoomzero.annotations import load_annotations

    samples = load_annotations(options.annotations, options.video_root)[: options.limit]
    from tqdm import tqdm

    from zoomzero.answering.engine import ZoomZero
    from zoomzero.evaluation import Prediction, evaluate, nextgqa_metrics

    engine = ZoomZero.from_pretrained(options.model, options.device)
    folder = options.run or Path("runs/eval") / time.strftime("%Y%m%d-%H%M%S")
    print(f"answers and skipped samples: {folder}", file=sys.stderr)
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
            run_folder=folder,
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
