"""`zoomzero answer`: one multiple-choice question about one video."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its options."""
    answer = commands.add_parser("answer", help="answer a multiple-choice question about a video")
    answer.add_argument("video", type=Path, help="the video file")
    answer.add_argument("question")
    answer.add_argument("--options", nargs="+", required=True, metavar="TEXT", help="2 to 8 possible answers")
    answer.add_argument("--model", help="checkpoint; the tiny model of the package unless told")
    answer.add_argument("--strategy", default="coarse_to_fine", help="single or coarse_to_fine (%(default)s)")
    answer.add_argument("--budget-tokens", type=int, help="visual tokens a pass; the checkpoint's own unless told")
    answer.add_argument("--device", help="cpu, cuda, ...")
    answer.add_argument("--json", action="store_true", help="print the whole answer as JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    # Opened before the model is loaded: a wrong path should not take seconds to tell.
    from zoomzero.prompts import OPTION_LETTERS
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
        text = options.options[OPTION_LETTERS.index(answer.letter)]
        print(f"answer: ({answer.letter}) {text}, confidence {answer.confidence:.2f}")
    return 0
