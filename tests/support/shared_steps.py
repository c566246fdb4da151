"""A few training steps on fixed rollouts, by one process or by several under `python -m torch.distributed.run`.

Usage: shared_steps.py <list of runs as JSON>. Of every run the first process writes losses, gradients, weights and
figures to its `result`.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from peft import LoraConfig
from support.zoom_clips import clip_rows
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from zoomzero.looks import PreparedPrompt
from zoomzero.rollouts import Rollouts
from zoomzero.synthetic import tiny_model, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer, collect, scoring
from zoomzero.training.weights import whole

LENGTH = 6


def fixed_rollouts(prompts: list[PreparedPrompt], group_size: int) -> Rollouts:
    """Responses that follow from the prompt alone, of different lengths."""
    rows = []
    for prompt in prompts:
        digest = hashlib.sha256(json.dumps([prompt.input_ids.tolist(), prompt.grid_thw.tolist()]).encode())
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:6], "big"))
        rows.append(torch.randint(1, LENGTH + 1, (group_size,), generator=generator))
        rows.append(torch.randint(20, 120, (group_size, LENGTH), generator=generator))
    lengths, token_ids = torch.cat(rows[0::2]), torch.cat(rows[1::2])
    mask = torch.arange(LENGTH) < lengths[:, None]
    return Rollouts(token_ids * mask, mask, torch.full(mask.shape, -5.0) * mask, lengths < LENGTH)


def fixed_scores(encoder: Any, scorer: Any, rows: Any, responses: Any, size: int) -> scoring.Scores:
    """Rewards that follow from the text alone."""
    digests = [
        hashlib.sha256(f"{row['question']}{text.text}".encode()).digest()
        for row, text in zip(rows, responses, strict=True)
    ]
    rewards = torch.tensor([[byte / 255 for byte in digest[:4]] for digest in digests])
    return scoring.Scores(rewards, [[] for _ in responses], 1)


class Gradients(TrainerCallback):
    """The gradients of the first step, before the optimizer takes them."""

    def __init__(self) -> None:
        self.first: dict[str, torch.Tensor] = {}
        self.sharded: set[str] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        if not self.first:
            named = kept["model"].named_parameters()
            self.first = {name: whole(p.grad).clone() for name, p in named if p.grad is not None}
            self.sharded = {name for name, p in kept["model"].named_parameters() if isinstance(p, DTensor)}


def run(settings: dict[str, Any]) -> None:
    """Train as the settings say."""
    # accelerate leaves it behind for processes that would follow.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    result, folder = Path(settings.pop("result")), Path(settings.pop("clips"))
    rows = clip_rows(folder, 4)
    for index in settings.pop("unreadable"):
        rows[index]["video"] = str(folder / f"gone-{index}.mp4")
    torch.manual_seed(0)
    processor = tiny_processor()
    model = tiny_model(processor.tokenizer)
    common = {
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 1, "num_generations": 4,
        "max_completion_length": LENGTH, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no",
        "lr_scheduler_type": "constant", "beta": 0.05, "shuffle_dataset": False, "max_skipped_fraction": 1.0,
        "max_grad_norm": 0.0,
    }  # fmt: skip
    resume = settings.pop("resume", None)
    gradients = Gradients()
    lora = settings.pop("lora", None)
    trainer = ZoomZeroTrainer(
        model, ZoomZeroConfig(**{**common, **settings}), rows, processing_class=processor, callbacks=[gradients],
        peft_config=None if lora is None else LoraConfig(**lora),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    weights = {name: whole(p.detach()) for name, p in trainer.model.named_parameters()}
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        found = {"gradients": gradients.first, "weights": weights, "logs": logs, "sharded": sorted(gradients.sharded)}
        torch.save(found, result)
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    collect.Collector._sample = lambda self, policy, prompts, size: fixed_rollouts(prompts, size)  # type: ignore
    collect.score = fixed_scores
    for wanted in json.loads(sys.argv[1]):
        run(wanted)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
