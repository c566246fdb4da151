"""Stops between two steps: signals held back while weights change, and the random states as the last step left them."""

from __future__ import annotations

import random
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from zoomzero.training.checkpoints import STOPPED_FOLDER, CheckpointError, newest_checkpoint

if TYPE_CHECKING:
    from zoomzero.training.checkpointing import CheckpointingTrainer


@dataclass(frozen=True)
class RandomStates:
    """States of the generators that training draws from."""

    python: Any
    """Of `random`."""
    numpy: Any
    """Of NumPy's global generator."""
    cpu: Tensor
    """Of torch's."""
    cuda: Tensor | None
    """Of torch's on this process's GPU."""

    @staticmethod
    def now() -> RandomStates:
        """The states at this moment."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        return RandomStates(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set the generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


class StepBoundary(TrainerCallback):
    """Knows whether the weights are those of a whole number of steps, and stops a run only where they are.

    Inside its `with` block SIGINT and SIGTERM raise KeyboardInterrupt and SystemExit at once, except between the
    optimizer's step and the end of the step, and while a checkpoint is written: there they wait.

    Note [Random states of a stop]: a run stopped in the middle of a step goes on from the end of the step before, so
    its checkpoint must hold the random states of that moment, not those after the draws of the unfinished step.
    """

    def __init__(self) -> None:
        self.weights_are_changing = False
        self._states = RandomStates.now()
        self._holding = 0
        self._waiting: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._states = RandomStates.now()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._holding += 1
        self.weights_are_changing = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._states = RandomStates.now()
        self.weights_are_changing = False
        if not control.should_log:
            self.release()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # The step's figures are in the state now, and so in a checkpoint of it.
        self.release()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._states = RandomStates.now()

    def go_back(self) -> None:
        """Set the generators to where the last whole step left them."""
        self._states.restore()

    def hold(self) -> None:
        """Let signals wait until `release`."""
        self._holding += 1

    def release(self) -> None:
        """End a `hold`; raises for a signal that came meanwhile."""
        self._holding = max(0, self._holding - 1)
        if self._holding == 0 and self._waiting is not None:
            number, self._waiting = self._waiting, None
            self._stop(number)

    def __enter__(self) -> StepBoundary:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._waiting = number
        else:
            self._stop(number)

    def _stop(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        # What a shell reports for a process that a signal ended.
        raise SystemExit(128 + number)


def keep_steps(trainer: CheckpointingTrainer, boundary: StepBoundary, error: BaseException) -> None:
    """Leave the steps of a run that ended early as a checkpoint, and say where; never raises for `error`'s sake."""
    boundary.hold()
    run, steps = trainer.run_folder, trainer.state.global_step
    newest = newest_checkpoint(run)
    if steps == 0 or isinstance(error, CheckpointError) or not trainer.is_world_process_zero():
        return
    if trainer.accelerator.num_processes > 1 and newest.num_steps < steps:
        # Writing takes all processes, and they may be at different places.
        print(f"stopped after {steps} steps; {newest.folder or 'no checkpoint'} is what is kept", file=sys.stderr)
        return
    if newest.num_steps >= steps:
        print(f"stopped after {steps} steps, which {newest.folder} holds", file=sys.stderr)
        return
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        # The frames of the failed step hold its activations.
        traceback.clear_frames(error.__traceback__)
        trainer.free_memory()
    whole = not boundary.weights_are_changing
    try:
        if whole:
            boundary.go_back()
        trainer.write_checkpoint(STOPPED_FOLDER, only_model=not whole)
    except Exception as failure:
        print(f"stopped after {steps} steps, which could not be kept: {failure}", file=sys.stderr)
        return
    how = "--resume goes on from there" if whole else "in the middle of a weight update, so as a model only"
    print(f"stopped after {steps} steps, kept in {run / STOPPED_FOLDER}; {how}", file=sys.stderr)
