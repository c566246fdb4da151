"""Training with vLLM's rollouts is training with our own: the same start, log-probabilities and rise of the reward."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from support.places import SUPPORT
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
    lora = settings.pop("peft_config", None)
    trainer = ZoomZeroTrainer(str(tiny_checkpoint()), ZoomZeroConfig(**settings), rows, peft_config=lora)
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


def test_adapters_are_merged_into_the_engines_weights(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    trainer = _trained(
        rows, tmp_path, use_vllm=True, vllm_max_model_length=512, max_steps=4, per_device_train_batch_size=16,
        learning_rate=3e-3, peft_config=lora,
    )  # fmt: skip
    assert max(_logged(trainer, "sampling/sampling_logp_difference/max")) < 1e-4
    assert float(trainer.model.get_parameter(_FACTOR).abs().max()) > 1e-3  # it started at 0


_FACTOR = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.default.weight"


@pytest.mark.parametrize("sharded", [False, True])
def test_every_process_has_an_engine(rows: list[dict[str, Any]], tmp_path: Path, sharded: bool) -> None:
    """Two processes over gloo, their weights sharded or not: each engine holds the trained weights, whole."""
    settings = {
        "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": [], "disable_tqdm": True, "max_steps": 3,
        "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 40, "learning_rate": 3e-4,
        "logging_steps": 1, "save_strategy": "no", "use_vllm": True, "vllm_max_model_length": 512, "fsdp": sharded,
        "result": str(tmp_path / "logs"), "annotations": str(Path(rows[0]["video"]).parent / "annotations.json"),
    }  # fmt: skip
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SUPPORT / "vllm_steps.py")]
    done = subprocess.run(
        [sys.executable, *launch, json.dumps(settings)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    logs = json.loads((tmp_path / "logs").read_text())
    assert [entry["sampling/sampling_logp_difference/max"] < 1e-4 for entry in logs] == [True] * 3
