"""A GRPOTrainer whose checkpoints are whole, and whose resumed runs equal uninterrupted ones.

TRL and transformers restore weights, optimizer, schedule and random states. What they leave out: the order of the data
after the first epoch (TRL's sampler starts its generator anew), the count of micro-batches that decides when to
generate, the skipped samples, and the check that a checkpoint is whole and of this run.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from zoomzero.skipping import Skipping
from zoomzero.training.checkpoints import (
    PARTIAL_FOLDER,
    STATE_FILE,
    differences,
    newest_checkpoint,
    read_run_file,
    replaced_whole,
    why_incomplete,
    written_whole,
)
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.dataset import COLUMNS
from zoomzero.training.weights import load_optimizer_state, load_weights, optimizer_state

logger = logging.getLogger("zoomzero.training")

# The names that transformers gives them.
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose order in an epoch depends on seed and epoch alone, not on the epochs drawn before it."""

    def __init__(self, base: RepeatSampler, seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(
            base.data_source, base.mini_repeat_count, base.batch_size, base.repeat_count, base.shuffle, seed
        )
        self._first_seed, self._epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self._first_seed + self._epoch())
        return super().__iter__()


class CheckpointingTrainer(GRPOTrainer):
    """See the file header; `ZoomZeroTrainer` adds the method."""

    args: ZoomZeroConfig
    _skipping: Skipping
    # Where a checkpoint is being written, None otherwise.
    _writing_in: Path | None = None

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As TRL's; True resumes from the newest complete checkpoint in output_dir.

        Raises:
            ValueError: there is no such checkpoint, the named one is not complete, or it is of another run.
        """
        folder = str(self._checked_checkpoint(resume_from_checkpoint)) if resume_from_checkpoint else None
        return super().train(folder, *args, **kwargs)

    def _checked_checkpoint(self, wanted: str | os.PathLike[str] | bool) -> Path:
        if wanted is True:
            newest = newest_checkpoint(self.run_folder)
            for folder, reason in newest.passed_over:
                logger.warning("%s is not complete (%s); passed over", folder, reason)
            if newest.folder is None:
                raise ValueError(
                    f"ZoomZeroTrainer: resuming needs a complete checkpoint in {self.run_folder}, got none; train "
                    "without resume_from_checkpoint"
                )
            folder = newest.folder
        else:
            folder = Path(str(wanted))
            incomplete = why_incomplete(folder)
            if incomplete is not None:
                raise ValueError(
                    f"ZoomZeroTrainer: a checkpoint to resume from must be complete, got {folder}: {incomplete}; name "
                    "another or pass True for the newest complete one"
                )
        different = differences(read_run_file(folder)["order"], self._order())
        if different:
            raise ValueError(
                f"ZoomZeroTrainer: {folder} must be of this run, got {'; '.join(different)}; resume with the same rows "
                "and settings, or start anew in another folder"
            )
        return folder

    @property
    def run_folder(self) -> Path:
        """Where checkpoints are written."""
        return Path(str(self.args.output_dir))

    def _order(self) -> dict[str, Any]:
        """What the order of the data follows from."""
        dataset, args = cast(Dataset, self.train_dataset), self.args
        digest = hashlib.sha256()
        for row in dataset.select_columns(list(COLUMNS)):
            # Without the folder: the videos may have moved.
            row["video"] = Path(row["video"]).name
            digest.update(json.dumps(row, sort_keys=True).encode())
        return {
            "rows": len(dataset),
            "digest of the rows": digest.hexdigest()[:16],
            "seed": args.seed,
            "shuffle_dataset": args.shuffle_dataset,
            "num_generations": args.num_generations,
            "generation_batch_size": args.generation_batch_size,
            "steps_per_generation": args.steps_per_generation,
            "num_iterations": args.num_iterations,
        }

    # -- hooks of TRL and transformers ---------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        sampler = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return EpochSampler(sampler, self.args.seed, lambda: int(self.state.epoch or 0))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writing_in is None else str(self._writing_in)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write checkpoint-<steps> whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.write_checkpoint(f"checkpoint-{self.state.global_step}", model, trial)

    def free_memory(self) -> None:
        """Let go of what a failed step left on the device."""
        self._buffered_inputs = None
        cast(torch.nn.Module, self.model).zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def write_checkpoint(
        self, name: str, model: torch.nn.Module | None = None, trial: Any = None, *, only_model: bool = False
    ) -> None:
        """Write a checkpoint of the steps taken under `name` in the run's folder.

        only_model: without optimizer and random states, so that it is a model and not something to go on from.

        Raises:
            CheckpointError: it cannot be written.
        """
        run, model = Path(super()._get_output_dir(trial)), model or self.model_wrapped
        self.args.save_only_model, asked = self.args.save_only_model or only_model, self.args.save_only_model
        try:
            if self.is_world_process_zero():
                self._write_whole(run, name, model, trial)
            else:
                # The first process makes the folder, then every one writes its random states.
                self.accelerator.wait_for_everyone()
                self._write_parts(run / PARTIAL_FOLDER, model, trial)
        finally:
            self.args.save_only_model = asked
        self.accelerator.wait_for_everyone()

    def _write_whole(self, run: Path, name: str, model: torch.nn.Module, trial: Any) -> None:
        with written_whole(run, name) as (folder, beside):
            self.accelerator.wait_for_everyone()
            self._write_parts(folder.parent, model, trial)
            written = folder.parent / f"checkpoint-{self.state.global_step}"
            if written != folder:
                folder.rmdir()
                written.rename(folder)
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent == folder.parent:
                self.state.best_model_checkpoint = str(run / name)
                self.state.save_to_json(str(folder / STATE_FILE))
            beside |= {"order": self._order(), "skipped": self._skipping.state(training=True)}
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _write_parts(self, folder: Path, model: torch.nn.Module, trial: Any) -> None:
        """This process's files of a checkpoint, into <folder>/checkpoint-<steps>."""
        self._writing_in = folder
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing_in = None
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Weights of a checkpoint into the model.

        transformers' own method loads the file's names as they are, but save_pretrained wrote Qwen-VL's weights under
        the published names: nothing would match and training would silently resume from the start model.
        """
        load_weights(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """By the parameters' names, whole: any number of processes, sharded or not, goes on from them."""
        state = optimizer_state(self.model_wrapped, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        load_optimizer_state(self.model_wrapped, self.optimizer, folder / OPTIMIZER_FILE)
        scheduler = torch.load(folder / SCHEDULER_FILE, weights_only=True)
        cast(Any, self.lr_scheduler).load_state_dict(scheduler)
        self._skipping.restore(read_run_file(folder)["skipped"], write=self.is_world_process_zero())
        # In the middle of a generation batch's steps the rest of it is generated anew, by the weights of now.
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        self._buffered_inputs = None

    def write_model(self) -> None:
        """Write the trained model into the run's folder; all processes call it together.

        Raises:
            CheckpointError: it cannot be written; the folder then holds what it held before.
        """
        if self.is_world_process_zero():
            with replaced_whole(self.run_folder) as folder:
                self.save_model(str(folder))
        elif self.is_fsdp_enabled:
            # The weights are gathered from all.
            self.save_model(str(self.run_folder))
        self.accelerator.wait_for_everyone()
