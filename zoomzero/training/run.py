"""Training from annotated samples with the method's defaults: the thin layer that `zoomzero train` and the demo share.

For anything beyond it build a `ZoomZeroTrainer` yourself, as any TRL trainer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from zoomzero.annotations import Sample
from zoomzero.answering.engine import ZoomZero
from zoomzero.files import lock_folder
from zoomzero.training.checkpoints import (
    STATE_FILE,
    STOPPED_FOLDER,
    Newest,
    delete_checkpoints,
    newest_checkpoint,
    require_writable,
)
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.progress import StepBar, history
from zoomzero.training.settings import TrainingSettings
from zoomzero.training.stopping import StepBoundary, keep_steps
from zoomzero.training.trainer import ZoomZeroTrainer
from zoomzero.training.weights import weights_dtype


def train_config(
    out: str | os.PathLike[str],
    *,
    steps: int,
    prompts: int,
    save_every: int | None = None,
    keep_last: int | None = None,
    **settings: Any,
) -> ZoomZeroConfig:
    """The configuration of a run of `train`.

    Args:
        out: folder of the trained checkpoint.
        steps: optimizer steps.
        prompts: prompts per step, each with num_generations responses.
        save_every: steps from one checkpoint to the next; None writes none unless the run ends early.
        keep_last: checkpoints that stay; None keeps all.
        settings: fields of `ZoomZeroConfig`.

    Raises:
        ValueError: settings that cannot be trained.
    """
    num_generations = settings.get("num_generations", TrainingSettings.num_generations)
    fixed = run_defaults(out, steps, prompts * num_generations, save_every, keep_last)
    return ZoomZeroConfig(**{**fixed, **settings})


def run_defaults(
    out: str | os.PathLike[str], steps: int, num_responses: int, save_every: int | None, keep_last: int | None
) -> dict[str, Any]:
    """What every run sets of TRL's settings, by name, before its own settings.

    num_responses: of a micro-batch, all prompts' groups together; the others as in `train_config`.
    """
    counts = {"steps": steps, "prompts": num_responses, "save_every": save_every, "keep_last": keep_last}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"train: {name} must be at least 1, got {value}; raise it")
    return {
        "output_dir": str(out),
        "max_steps": steps,
        # Several processes on a machine without a GPU find each other only if the CPU is asked for.
        "use_cpu": not torch.accelerator.is_available(),
        "per_device_train_batch_size": num_responses,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "save_strategy": "no" if save_every is None else "steps",
        "save_steps": save_every or steps,
        "save_total_limit": keep_last,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def train(
    start: ZoomZero | str | os.PathLike[str] | None,
    samples: Sequence[Sample],
    config: ZoomZeroConfig,
    *,
    resume: bool = False,
    start_over: bool = False,
    peft_config: Any = None,
) -> tuple[ZoomZero, list[dict[str, float]]]:
    """GRPO on the samples; writes the trained checkpoint to the config's output_dir, and skipped samples beside it.

    A run that ends early, by an error, too many unreadable videos, SIGINT or SIGTERM, leaves the steps it took as a
    checkpoint in output_dir/stopped.

    Args:
        start: the model to train (changed in place), or its checkpoint; None is the package's tiny model.
        samples: annotated questions.
        config: as `train_config` makes it.
        resume: go on from the newest complete checkpoint in output_dir, or begin where there is none.
        start_over: delete the checkpoints of an earlier run; without it and `resume` they are an error.
        peft_config: a LoraConfig to train adapters, whose folder output_dir then is.

    Returns:
        The trained model, and the logged metrics of every step.

    Raises:
        ValueError: a model or samples that cannot be trained, or output_dir holds an earlier run's checkpoints or is
            written to by another run.
        VideoError: the videos of more than max_skipped_fraction of the samples are unreadable.
        OSError: output_dir cannot be written, told before the first step; CheckpointError: a checkpoint cannot.
    """
    run = Path(str(config.output_dir))
    require_writable(run)
    with contextlib.ExitStack() as stack:
        if config.process_index == 0:
            stack.callback(os.close, lock_folder(run))
        return _train(start, samples, config, resume=resume, start_over=start_over, peft_config=peft_config)


def _train(
    start: ZoomZero | str | os.PathLike[str] | None,
    samples: Sequence[Sample],
    config: ZoomZeroConfig,
    *,
    resume: bool,
    start_over: bool,
    peft_config: Any,
) -> tuple[ZoomZero, list[dict[str, float]]]:
    """The same, in a folder that is this launch's."""
    run = Path(str(config.output_dir))
    with config.main_process_first(desc="looking for checkpoints"):
        newest = _earlier_run(run, resume=resume, start_over=start_over, is_first=config.process_index == 0)
    engine = start
    if not isinstance(engine, ZoomZero):
        engine = ZoomZero.from_pretrained(engine, dtype=weights_dtype(config, peft_config))
    bar, boundary = StepBar(), StepBoundary()
    rows = [dataclasses.asdict(sample) for sample in samples]
    # The trainer itself refuses models that it cannot train.
    model: Any = engine.model
    trainer = ZoomZeroTrainer(
        model, config, rows, processing_class=engine.processor, callbacks=[bar, boundary], peft_config=peft_config
    )
    is_first = trainer.is_world_process_zero()
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    try:
        with boundary:
            _take_steps(trainer, newest)
            boundary.hold()
            trainer.write_model()
            if is_first:
                shutil.rmtree(run / STOPPED_FOLDER, ignore_errors=True)
    except BaseException as error:
        keep_steps(trainer, boundary, error)
        raise
    finally:
        bar.close()
    return ZoomZero(trainer.trained_model(), engine.processor), history(trainer.state)


def _earlier_run(run: Path, *, resume: bool, start_over: bool, is_first: bool) -> Newest:
    """What to go on from; ValueError where that is not clear. The first process says it and deletes."""
    newest = newest_checkpoint(run)
    if start_over:
        if is_first:
            delete_checkpoints(run)
        return Newest(None, 0, [])
    if not resume and newest.folder is not None:
        raise ValueError(
            f"train: {run} must hold no checkpoints of an earlier run, got {newest.folder.name}; go on with it "
            "(--resume), delete it (--start-over) or choose another folder"
        )
    if not resume:
        return Newest(None, 0, [])
    if newest.folder is None and (run / "model.safetensors").exists():
        raise ValueError(
            f"train: resuming needs a complete checkpoint, got {run} with a trained model and none; choose another "
            "folder, or train that model further with --model"
        )
    if is_first:
        for folder, reason in newest.passed_over:
            print(f"{folder} is not complete ({reason}); passed over", file=sys.stderr)
        found = f"going on from {newest.folder}, {newest.num_steps} steps"
        none = f"no complete checkpoint in {run}; beginning with the first step"
        print(none if newest.folder is None else found, file=sys.stderr)
    return newest


def _take_steps(trainer: ZoomZeroTrainer, newest: Newest) -> None:
    """Train, unless the checkpoint holds all steps already."""
    if newest.folder is not None and newest.num_steps >= trainer.args.max_steps:
        trainer.state = TrainerState.load_from_json(str(newest.folder / STATE_FILE))
        trainer._load_from_checkpoint(str(newest.folder))
        return
    trainer.train(resume_from_checkpoint=newest.folder)
