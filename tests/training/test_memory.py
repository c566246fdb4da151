"""What training is said to need: counted activations against the real ones, the command, the table of the docs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.places import TESTS
from support.small_families import FAMILY_NAMES, save_small_checkpoint
from torch import Tensor

from zoomzero.cli import main
from zoomzero.models.kept_activations import full_groups, kept_activations
from zoomzero.models.loading import load_model
from zoomzero.models.packed_attention import packed_arguments, use_packed_attention
from zoomzero.synthetic import tiny_model
from zoomzero.training import ZoomZeroConfig
from zoomzero.training.memory import Launch, TrainingMemory, launch_of, parsed_bytes, training_memory

LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def _really_kept(model: Any, lengths: Any) -> int:
    """Bytes that autograd keeps of a forward of the model itself."""
    kept: dict[int, Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    count = sum(lengths.prefix_lengths) + sum(map(sum, lengths.branch_lengths))
    hidden = torch.randn(1, count, model.config.get_text_config().hidden_size, requires_grad=True)
    use_packed_attention(model)
    language = model.model.language_model.train()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor) is None or tensor, lambda t: t
    ):
        positions = torch.arange(count).expand(3, 1, -1)
        out = language(
            inputs_embeds=hidden, position_ids=positions, **packed_arguments(lengths, torch.device("cpu"))
        ).last_hidden_state
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_autograd_keeps(name: str, lora: bool, checkpointing: bool, tmp_path: Path) -> None:
    model: Any = load_model(save_small_checkpoint(name, tmp_path), "cpu", torch.float32)
    peft_config = LoraConfig(**LORA) if lora else None
    lengths = full_groups(prompt_tokens=40, response_tokens=9, group_size=3, num_groups=2)
    counted = kept_activations(model.config, lengths, checkpointing=checkpointing, peft_config=peft_config)
    if peft_config is not None:
        get_peft_model(model, peft_config)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = _really_kept(model, lengths)
    # Checkpointing also keeps the arguments that all layers share, once.
    assert counted.total(model.config.get_text_config().num_hidden_layers) == pytest.approx(found, rel=0.02)


def _settings(tmp_path: Path, **changes: Any) -> ZoomZeroConfig:
    options = {"use_cpu": True, "report_to": [], "per_device_train_batch_size": 8, "max_completion_length": 64}
    return ZoomZeroConfig(output_dir=str(tmp_path), **{**options, **changes})


def _needs(tmp_path: Path, launch: Launch, peft_config: Any = None, **changes: Any) -> TrainingMemory:
    config = tiny_model().config
    return training_memory(
        config, _settings(tmp_path, **changes), launch, visual_tokens=32, text_tokens=50, peft_config=peft_config
    )


def test_what_is_kept_of_weights_is_counted_exactly(tmp_path: Path) -> None:
    model = tiny_model()
    vision = sum(parameter.numel() for parameter in model.model.visual.parameters())
    every = sum(parameter.numel() for parameter in model.parameters())
    trained = every - vision
    needs = _needs(tmp_path, Launch(device="cpu"))
    assert (needs.weights, needs.optimizer) == (4 * every, 8 * trained)
    assert (needs.gradients, needs.reference) == (4 * trained, 4 * trained)
    # DDP keeps buckets of the gradients; FSDP2 divides, and holds a whole copy for rollouts.
    assert _needs(tmp_path, Launch(4, "cpu")).gradients == 8 * trained
    sharded = _needs(tmp_path, Launch(4, "cpu"), fsdp=True, fsdp_config={"version": 2})
    assert (sharded.optimizer, sharded.gradients) == (2 * trained, trained)
    assert 5 * every < sharded.weights < 9 * every
    # Adapters: no copy, and states of their own weights alone.
    lora = LoraConfig(**LORA)
    needs = _needs(tmp_path, Launch(device="cpu"), lora)
    wrapped: Any = get_peft_model(model, lora)
    adapters = sum(
        weight.numel() for name, weight in wrapped.named_parameters() if "lora_" in name and "visual" not in name
    )
    assert (needs.optimizer, needs.gradients, needs.reference) == (8 * adapters, 4 * adapters, 0)
    assert _needs(tmp_path, Launch(device="cpu"), beta=0.0, zoom_reward=False).reference == 0


def test_phases_hold_what_lives_at_once(tmp_path: Path) -> None:
    needs = _needs(tmp_path, Launch(device="cpu"))
    always = needs.weights + needs.optimizer + needs.other
    offloaded = dataclasses.replace(needs, offloads_reference=True)
    assert needs.phases()["loss"] == always + needs.reference + needs.activations + needs.head
    assert offloaded.phases()["loss"] == needs.phases()["loss"] - needs.reference
    assert offloaded.phases()["scoring"] == needs.phases()["scoring"]
    accumulated = dataclasses.replace(needs, accumulates=True)
    assert accumulated.phases()["loss"] == needs.phases()["loss"] + needs.gradients
    beside = dataclasses.replace(needs, samples_beside=True)
    assert beside.phases()["gradients"] == needs.phases()["gradients"] + needs.rollouts
    assert beside.phases()["rollouts"] == needs.phases()["rollouts"]
    assert needs.total == max(needs.phases().values())
    checkpointed = _needs(tmp_path, Launch(device="cpu"), gradient_checkpointing=True)
    assert checkpointed.activations < needs.activations
    assert _needs(tmp_path, Launch(device="cpu"), freeze_vision=False).activations > needs.activations


def test_the_command_refuses_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "no-such-file.json", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--memory", "24GiB", "--processes", "8"]) == 0
    shown = capsys.readouterr().out
    assert "memory of each of 8 processes" in shown
    assert shown.splitlines()[-1] == "fits 24 GiB"
    assert main([*command, "--memory", "64MiB"]) == 1
    assert "does not fit 0.0625 GiB" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main([*command[:-1], "--memory", "24GiB"]) == 1
    assert "--memory and --processes are for --dry-run" in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"out: {tmp_path / 'out'}\nlora: {{r: 4, target_modules: [q_proj]}}\nbf16: true\n")
    assert main(["train", "--config", str(recipe), "--dry-run", "--memory", "8GB"]) == 0
    assert "reference" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"), [("24GiB", 24 << 30), ("80GB", 80 * 10**9), ("0.5 TiB", 1 << 39), ("512", 512), ("2k", 2000)]
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parsed_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0GiB", "24 gigs"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size must be a number and a unit"):
        parsed_bytes(text)


def test_a_launch_of_this_machine() -> None:
    assert launch_of("1GiB", 2) == Launch(2, card_bytes=1 << 30)
    assert launch_of(None, 1).card_bytes > 1 << 20
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        launch_of(None, 0)


@pytest.mark.slow
def test_the_documented_table_is_what_the_code_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TESTS.parent / "benchmarks"))
    published_models = __import__("published_models")
    assert published_models.memory_table() in (TESTS.parent / "docs" / "training.md").read_text(encoding="utf-8")
    del sys.modules["published_models"]
