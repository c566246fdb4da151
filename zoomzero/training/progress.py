"""What a run shows while it trains, and the history that the demo's page draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState


class StepBar(TrainerCallback):
    """A progress bar over training steps with the figures that matter."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar = tqdm(
            disable=not state.is_world_process_zero,
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
        )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if self._bar is not None and logs is not None and "miou" in logs:
            self._bar.set_postfix(miou=f"{logs['miou']:.2f}", zoom=f"{logs.get('zoom_accuracy', 0):.2f}")

    def close(self) -> None:
        """End the bar, also where training ended early."""
        if self._bar is not None:
            self._bar.close()


def history(state: TrainerState) -> list[dict[str, float]]:
    """The logged figures of every step with rollouts, those before a resume included."""
    return [
        {name: float(value) for name, value in entry.items() if isinstance(value, int | float)}
        for entry in state.log_history
        if "miou" in entry
    ]
