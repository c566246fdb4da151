"""What a run shows while it trains: a bar over the steps, and the history that the demo's page draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState


class StepBar(TrainerCallback):
    """A progress bar over training steps with the figures that matter, and a record of every logged metric."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

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
