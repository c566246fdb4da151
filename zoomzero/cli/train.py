"""`zoomzero train`: GRPO with the zoom reward on an annotation file."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoomzero.cli.fields import add_fields, field_values
from zoomzero.cli.row_limits import add_row_limits, row_limits
from zoomzero.training.settings import TrainingSettings

if TYPE_CHECKING:
    from zoomzero.annotations import Sample
    from zoomzero.training.config import ZoomZeroConfig

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
    train = commands.add_parser(
        "train",
        help="GRPO with the zoom reward on an annotation file, or as a recipe says",
        usage="zoomzero train FILE --out FOLDER [options]\n"
        "       zoomzero train --config RECIPE [KEY=VALUE ...] [--out FOLDER] [--model NAME] [--resume | --start-over]",
    )
    train.add_argument(
        "arguments",
        nargs="*",
        metavar="FILE | KEY=VALUE",
        help="JSON list of questions, the videos beside it; with --config changes of the recipe",
    )
    train.add_argument("--config", type=Path, metavar="RECIPE", help="YAML file of model, data and settings")
    train.add_argument("--model", help="start checkpoint; the tiny model of the package unless told")
    train.add_argument("--video-root", type=Path, help="folder of the videos, if not beside the annotations")
    train.add_argument("--out", type=Path, help="folder of the trained checkpoint")
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
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="estimate the memory each process needs, and end; reads neither data nor weights",
    )
    train.add_argument(
        "--memory", metavar="SIZE", help="with --dry-run: of a card, e.g. 80GiB; this machine's own unless told"
    )
    train.add_argument("--processes", type=int, metavar="NUM", help="with --dry-run: cards, one process each (1)")
    train.add_argument("--seed", type=int, default=0, help="of the data's order and of sampling (%(default)s)")
    add_row_limits(train)
    add_fields(train, TrainingSettings, FLAGS)
    train.set_defaults(default_of=train.get_default)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if not options.dry_run and (options.memory is not None or options.processes is not None):
        raise ValueError("--memory and --processes are for --dry-run, got one without it; add --dry-run")
    asked = _from_options(options) if options.config is None else _from_recipe(options)
    if options.dry_run:
        return _estimate(asked, options)
    from zoomzero.training.run import train

    resuming = {"resume": options.resume, "start_over": options.start_over}
    train(asked.model, asked.load(), asked.config, peft_config=asked.peft_config, **resuming)
    if asked.config.process_index == 0:
        print(f"checkpoint: {asked.config.output_dir}")
    return 0


class _Asked(NamedTuple):
    """A run as it was asked for."""

    model: str | None
    load: Callable[[], list[Sample]]
    config: ZoomZeroConfig
    peft_config: Any = None


def _estimate(asked: _Asked, options: argparse.Namespace) -> int:
    """Say what the run needs of each card; status 1 where that is more than there is."""
    from zoomzero.training.memory import launch_of, memory_of_run

    launch = launch_of(options.memory, options.processes or asked.config.world_size)
    needs = memory_of_run(asked.model, asked.config, launch, peft_config=asked.peft_config)
    print(needs.said(launch))
    return int(needs.total > launch.card_bytes)


def _from_options(options: argparse.Namespace) -> _Asked:
    from zoomzero.annotations import load_annotations

    if len(options.arguments) != 1 or options.out is None:
        raise ValueError(
            f"needs one annotation file and --out FOLDER, or --config RECIPE, got {len(options.arguments)} "
            f"files and {'no --out' if options.out is None else '--out'}; see --help"
        )
    load = functools.partial(load_annotations, Path(options.arguments[0]), options.video_root, **row_limits(options))
    from zoomzero.training.run import train_config

    config = train_config(
        options.out,
        steps=options.steps,
        prompts=options.prompts,
        save_every=options.save_every or None,
        keep_last=options.keep_last or None,
        seed=options.seed,
        **field_values(options, TrainingSettings),
    )
    return _Asked(options.model, load, config)


def _from_recipe(options: argparse.Namespace) -> _Asked:
    from zoomzero.training.recipe import change, load_recipe
    from zoomzero.training.sources import load_sources

    kept = {"config", "arguments", "out", "model", "resume", "start_over", "strict", "command", "default_of"}
    kept |= {"dry_run", "memory", "processes"}
    for name, value in vars(options).items():
        if name not in kept and value != options.default_of(name):
            raise ValueError(
                f"with --config a setting is given as KEY=VALUE, got the option of {name}; write {name}={value}"
            )
    changes = dict(change(text) for text in options.arguments)
    if options.out is not None:
        changes["out"] = str(options.out)
    if options.model is not None:
        changes["model"] = options.model
    recipe, config = load_recipe(options.config, changes)
    limits = row_limits(options) | {"max_bad_fraction": recipe.max_bad_fraction}
    load = functools.partial(load_sources, recipe.data, config.seed, **limits)
    return _Asked(recipe.model, load, config, recipe.peft_config())
