"""`zoomzero train`: GRPO with the zoom reward on an annotation file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zoomzero.cli.fields import add_fields, field_values
from zoomzero.cli.row_limits import add_row_limits, row_limits
from zoomzero.training.settings import TrainingSettings

# Options that are shorter than their field, or say it the other way round.
FLAGS = {
    "num_generations": "--rollouts",
    "max_completion_length": "--max-new-tokens",
    "advantage_normalize": "--normalize",
    "freeze_vision": "--train-vision",
    "video_time_limit": "--time-limit",
}


def add(commands: Any) -> None:
    """Add the command and its options."""
    train = commands.add_parser("train", help="GRPO with the zoom reward on a NExT-GQA-style annotation file")
    train.add_argument("annotations", type=Path, help="JSON list of questions; the videos lie beside it")
    train.add_argument("--model", help="start checkpoint; the tiny model of the package unless told")
    train.add_argument("--video-root", type=Path, help="folder of the videos, if not beside the annotations")
    train.add_argument("--out", type=Path, required=True, help="folder of the trained checkpoint")
    train.add_argument("--steps", type=int, default=80, help="training steps (%(default)s)")
    train.add_argument("--prompts", type=int, default=8, help="prompts per step (%(default)s)")
    train.add_argument(
        "--save-every",
        type=int,
        default=50,
        metavar="STEPS",
        help="steps between checkpoints, 0 for none (%(default)s)",
    )
    train.add_argument(
        "--keep-last", type=int, default=2, metavar="NUM", help="checkpoints that stay, 0 for all (%(default)s)"
    )
    train.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in --out")
    train.add_argument("--start-over", action="store_true", help="delete the checkpoints of an earlier run in --out")
    train.add_argument("--seed", type=int, default=0, help="of the data's order and of sampling (%(default)s)")
    add_row_limits(train)
    add_fields(train, TrainingSettings, FLAGS)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from zoomzero.annotations import load_annotations

    samples = load_annotations(options.annotations, options.video_root, **row_limits(options))
    from zoomzero.training.run import train, train_config

    settings = field_values(options, TrainingSettings)
    config = train_config(
        options.out,
        steps=options.steps,
        prompts=options.prompts,
        save_every=options.save_every or None,
        keep_last=options.keep_last or None,
        seed=options.seed,
        **settings,
    )
    train(options.model, samples, config, resume=options.resume, start_over=options.start_over)
    if config.process_index == 0:
        print(f"checkpoint: {options.out}")
    return 0
