"""`zoomzero train`: GRPO with the zoom reward on an annotation file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zoomzero.cli.video_limits import add_video_limits


def add(commands: Any) -> None:
    """Add the command and its options."""
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
    add_video_limits(train)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
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
