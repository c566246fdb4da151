"""Training with vLLM's rollouts is training with our own: the same start, log-probabilities and rise of the reward."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.vllm_engine import import_vllm

from zoomzero import ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.annotations import load_annotations
from zoomzero.synthetic import make_clips, tiny_checkpoint

import_vllm()

STEPS = 20


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 60, seed=21)
    return [dataclasses.asdict(sample) for sample in load_annotations(folder / "annotations.json")]


def _trained(rows: list[dict[str, Any]], out: Path, **changes: Any) -> ZoomZeroTrainer:
    settings = {
        "output_dir": str(out), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3, "max_steps": STEPS,
        "num_generations": 8, "per_device_train_batch_size": 64, "max_completion_length": 40, "learning_rate": 3e-4,
        "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant", **changes,
    }  # fmt: skip
    trainer = ZoomZeroTrainer(str(tiny_checkpoint()), ZoomZeroConfig(**settings), rows)
    trainer.train()
    return trainer


def _logged(trainer: ZoomZeroTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.slow
def test_both_samplers_train(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    ours = _trained(rows, tmp_path / "ours")
    theirs = _trained(rows, tmp_path / "theirs", use_vllm=True, vllm_max_model_length=512)
    apart = _logged(theirs, "sampling/sampling_logp_difference/max")
    assert len(apart) == STEPS
    assert max(apart) < 1e-4
    assert not _logged(ours, "sampling/sampling_logp_difference/max")
    for trainer in (ours, theirs):
        miou = torch.tensor(_logged(trainer, "miou"))
        assert float(miou[-4:].mean()) > float(miou[:4].mean()) + 0.04, miou
        assert len(_logged(trainer, "seconds/generation")) == STEPS
    assert len(_logged(theirs, "seconds/weights")) == STEPS


def test_steps_of_several_iterations_keep_to_what_was_sampled(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """A batch trained twice: its ratios are to the policy that vLLM sampled for, whose weights are 1 all the same."""
    trainer = _trained(
        rows, tmp_path, use_vllm=True, vllm_max_model_length=512, max_steps=4, num_iterations=2,
        per_device_train_batch_size=16, learning_rate=3e-3, freeze_vision=False,
    )  # fmt: skip
    apart = _logged(trainer, "sampling/sampling_logp_difference/max")
    assert len(apart) == 2
    assert max(apart) < 1e-4
    assert _logged(trainer, "sampling/importance_sampling_ratio/mean") == pytest.approx([1.0, 1.0], abs=1e-3)
    assert len(_logged(trainer, "seconds/weights")) == 2
