"""Training from annotated samples with the method's defaults: the thin layer that `zoomzero train` and the demo share.

For anything beyond these options build a `ZoomZeroTrainer` yourself, as any TRL trainer.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from zoomzero.annotations import Sample
from zoomzero.answering.engine import ZoomZero
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.video import DEFAULT_TIME_LIMIT_SECONDS, VideoError

STOPPED_FOLDER = "stopped"


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What `train` sets; see `ZoomZeroConfig` for the meaning of the last eight.

    out: folder of the checkpoint; steps: optimizer steps, of num_prompts prompts with num_rollouts responses each;
    max_new_tokens: longest response.
    """

    out: Path
    steps: int = 80
    num_prompts: int = 8
    num_rollouts: int = 8
    learning_rate: float = 1e-6
    max_new_tokens: int = 512
    beta: float = 0.01
    credit: str = "token_adv"
    advantage_normalize: str = "segments"
    zoom_reward: bool = True
    freeze_vision: bool = True
    video_time_limit: float | None = DEFAULT_TIME_LIMIT_SECONDS
    max_skipped_fraction: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "num_prompts", "num_rollouts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"train: {name} must be at least 1, got {getattr(self, name)}; raise it")


class StepBar(TrainerCallback):
    """A progress bar over training steps with the figures that matter, and a record of every logged metric."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar = tqdm(total=state.max_steps, desc="training", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "miou" not in figures:
            return
        self.history.append(figures)
        if self._bar is not None:
            self._bar.set_postfix(miou=f"{figures['miou']:.2f}", zoom=f"{figures.get('zoom_accuracy', 0):.2f}")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def train(
    start: ZoomZero | str | os.PathLike[str] | None, samples: Sequence[Sample], options: TrainOptions
) -> tuple[ZoomZero, list[dict[str, float]]]:
    """GRPO on the samples; writes the trained checkpoint to `options.out`, and skipped samples to skipped.jsonl there.

    A run that ends early, by too many unreadable videos or by the user, leaves the steps it took as a checkpoint in
    `options.out`/stopped.

    Args:
        start: the model to train (changed in place), or its checkpoint; None is the package's tiny model.
        samples: annotated questions.
        options: sizes and switches.

    Returns:
        The trained model, and the logged metrics of every step.

    Raises:
        ValueError: settings that cannot be trained.
        VideoError: the videos of more than max_skipped_fraction of the samples are unreadable.
    """
    engine = start if isinstance(start, ZoomZero) else ZoomZero.from_pretrained(start)
    config = ZoomZeroConfig(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.num_prompts * options.num_rollouts,
        num_generations=options.num_rollouts,
        max_completion_length=options.max_new_tokens,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        beta=options.beta,
        credit=options.credit,
        advantage_normalize=options.advantage_normalize,
        zoom_reward=options.zoom_reward,
        freeze_vision=options.freeze_vision,
        video_time_limit=options.video_time_limit,
        max_skipped_fraction=options.max_skipped_fraction,
        seed=options.seed,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    bar = StepBar()
    rows = [dataclasses.asdict(sample) for sample in samples]
    trainer = ZoomZeroTrainer(engine.model, config, rows, processing_class=engine.processor, callbacks=[bar])
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    try:
        trainer.train()
    except (VideoError, KeyboardInterrupt):
        if trainer.state.global_step:
            trainer.save_model(str(options.out / STOPPED_FOLDER))
        raise
    trainer.save_model()
    return ZoomZero(engine.model.eval(), engine.processor), bar.history
