"""Training from annotated samples with the method's defaults: the thin layer that `zoomzero train` and the demo share.

For anything beyond it build a `ZoomZeroTrainer` yourself, as any TRL trainer.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from zoomzero.annotations import Sample
from zoomzero.answering.engine import ZoomZero
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.progress import StepBar
from zoomzero.training.settings import TrainingSettings
from zoomzero.training.trainer import ZoomZeroTrainer
from zoomzero.video import VideoError

STOPPED_FOLDER = "stopped"


def train_config(out: str | os.PathLike[str], *, steps: int, prompts: int, **settings: Any) -> ZoomZeroConfig:
    """The configuration of a run of `train`.

    Args:
        out: folder of the trained checkpoint.
        steps: optimizer steps.
        prompts: prompts per step, each with num_generations responses.
        settings: fields of `ZoomZeroConfig`.

    Raises:
        ValueError: settings that cannot be trained.
    """
    for name, value in (("steps", steps), ("prompts", prompts)):
        if value < 1:
            raise ValueError(f"train: {name} must be at least 1, got {value}; raise it")
    fixed = {
        "output_dir": str(out),
        "max_steps": steps,
        "per_device_train_batch_size": prompts * settings.get("num_generations", TrainingSettings.num_generations),
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return ZoomZeroConfig(**{**fixed, **settings})


def train(
    start: ZoomZero | str | os.PathLike[str] | None, samples: Sequence[Sample], config: ZoomZeroConfig
) -> tuple[ZoomZero, list[dict[str, float]]]:
    """GRPO on the samples; writes the trained checkpoint to the config's output_dir, and skipped samples beside it.

    A run that ends early, by too many unreadable videos or by the user, leaves the steps it took as a checkpoint in
    output_dir/stopped.

    Args:
        start: the model to train (changed in place), or its checkpoint; None is the package's tiny model.
        samples: annotated questions.
        config: as `train_config` makes it.

    Returns:
        The trained model, and the logged metrics of every step.

    Raises:
        ValueError: a model or samples that cannot be trained.
        VideoError: the videos of more than max_skipped_fraction of the samples are unreadable.
    """
    engine = start if isinstance(start, ZoomZero) else ZoomZero.from_pretrained(start)
    bar = StepBar()
    rows = [dataclasses.asdict(sample) for sample in samples]
    # The trainer itself refuses models that it cannot train.
    model: Any = engine.model
    trainer = ZoomZeroTrainer(model, config, rows, processing_class=engine.processor, callbacks=[bar])
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    try:
        trainer.train()
    except (VideoError, KeyboardInterrupt):
        if trainer.state.global_step:
            trainer.save_model(str(Path(cast(str, config.output_dir)) / STOPPED_FOLDER))
        raise
    trainer.save_model()
    return ZoomZero(engine.model.eval(), engine.processor), bar.history
