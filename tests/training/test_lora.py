"""LoRA: only the adapters train, the model without them is the reference, and their checkpoints answer and go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from zoomzero import ZoomZero
from zoomzero.annotations import load_annotations
from zoomzero.models.adapters import adapters_off, merged_weights, without_wrapper
from zoomzero.models.loading import load_model
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.synthetic import make_clips, tiny_checkpoint
from zoomzero.training import ZoomZeroTrainer
from zoomzero.training.loss import group_logps, group_loss
from zoomzero.training.packing import PackedForward
from zoomzero.training.run import train, train_config

Build = Callable[..., ZoomZeroTrainer]


def _lora(**changes: Any) -> LoraConfig:
    # Adapters that start at random, not at 0: what is left out or added twice shows in the first step.
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **changes})


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_the_adapters_train_and_nothing_else(build: Build, varied_rewards: None, freeze_vision: bool) -> None:
    trainer = build(peft_config=_lora(), freeze_vision=freeze_vision, max_steps=2, gradient_checkpointing=True)
    before = _weights(trainer.model)
    trainer.train()
    assert {"visual" in name for name in before if "lora_" in name} == {False, not freeze_vision}
    for name, value in _weights(trainer.model).items():
        assert torch.equal(value, before[name]) is ("lora_" not in name), name
    assert trainer.state.log_history[0]["kl"] > 0


def test_the_reference_is_the_model_without_its_adapter(build: Build, model: Any, varied_rewards: None) -> None:
    start = copy.deepcopy(model)
    trainer = build(peft_config=_lora(), beta=0.05, num_iterations=2)
    trainer.model.train()
    batch = trainer._prepare_inputs([row for row in trainer.train_dataset.select([0, 2]) for _ in range(4)])
    groups = batch["groups"]
    expected = group_logps(PackedForward(start, start), groups, trainer.temperature)
    assert float(((expected - groups.ref_logps) * groups.mask).abs().max()) < 2e-5
    sampled = group_logps(PackedForward(trainer.model, trainer._core()), groups, trainer.temperature)
    assert float(((sampled - groups.old_logps) * groups.mask).abs().max()) < 2e-5
    assert float(((expected - sampled) * groups.mask).abs().max()) > 1e-2


def test_gradients_are_those_of_the_merged_weights(build: Build, model: Any, varied_rewards: None) -> None:
    """Against those of the merged weights, by the chain rule."""
    merged = copy.deepcopy(model)
    trainer = build(peft_config=_lora(), beta=0.0, zoom_reward=False)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._prepare_inputs([row for row in trainer.train_dataset.select([0]) for _ in range(4)])
    groups = batch["groups"]
    trainer.compute_loss(trainer.model, batch).backward()
    packed = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert all("lora_" in name for name in packed)
    adapted = _weights(trainer.model)
    merged.load_state_dict(merged_weights(trainer._core()))
    group_loss(PackedForward(merged, merged), groups, trainer.args, groups.num_items).loss.backward()
    # Of the sum W + s B A: dB = s dW A^T, dA = s B^T dW.
    checked = 0
    for name, gradient in packed.items():
        place, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        whole = merged.get_parameter(f"{place}.weight").grad
        pair = name.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B")
        other = adapted[pair]
        scale = 8 / 4  # PEFT's default alpha over r
        expected = scale * (other.T @ whole if factor.startswith("A") else whole @ other.T)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-4 * float(expected.abs().max()), msg=name)
        checked += 1
    assert checked == 2 * 7 * len(merged.model.language_model.layers)
    assert float(groups.advantages.abs().max()) > 0.1


def test_merged_weights_are_the_model_with_its_adapter(model: Any) -> None:
    wrapped = get_peft_model(copy.deepcopy(model), _lora(exclude_modules=r".*visual.*"))
    before = _weights(wrapped)
    merged = merged_weights(without_wrapper(wrapped))
    assert merged.keys() == model.state_dict().keys()
    expected = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    for name, value in merged.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, msg=name)
    assert all(torch.equal(value, before[name]) for name, value in _weights(wrapped).items())
    with adapters_off(without_wrapper(wrapped)):
        pass
    assert all(p.requires_grad is ("lora_" in name) for name, p in wrapped.named_parameters())


def test_a_resumed_run_equals_an_uninterrupted_one(
    build: Build, varied_rewards: None, model: Any, tmp_path: Path
) -> None:
    settings = {"peft_config": _lora(init_lora_weights=True), "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = build(model=copy.deepcopy(model), output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    saved = tmp_path / "whole" / "checkpoint-1"
    assert {path.name for path in saved.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert not list(saved.glob("*.bin"))
    again = build(model=copy.deepcopy(model), output_dir=str(tmp_path / "again"), **settings)
    again.train(resume_from_checkpoint=str(saved))
    for name, value in _weights(whole.model).items():
        assert torch.equal(value, again.model.get_parameter(name)), name
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, again)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    other = {**settings, "peft_config": _lora(target_modules=["q_proj", "o_proj"], r=4)}
    more = build(model=copy.deepcopy(model), output_dir=str(tmp_path / "more"), **{**other, "max_steps": 1})
    more.train()
    with pytest.raises(ValueError, match=r"must hold the model's weights, got none of .*; resume with the model and"):
        build(output_dir=str(tmp_path / "last"), **settings).train(
            resume_from_checkpoint=str(tmp_path / "more" / "checkpoint-1")
        )


def test_adapters_answer_merged_or_not(tmp_path: Path) -> None:
    """ZoomZero from a folder of adapters answers as the model that was trained, and as one merged by PEFT."""
    clip = make_clips(tmp_path / "clips", 1, seed=3)[0]
    question = clip.questions[0]
    engine = ZoomZero.from_pretrained(tiny_checkpoint(), device="cpu")
    wrapped = get_peft_model(engine.model, _lora(exclude_modules=r".*visual.*", r=2))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.05)
    wrapped.save_pretrained(tmp_path / "adapter")
    engine.model.config.save_pretrained(tmp_path / "adapter")
    engine.processor.save_pretrained(tmp_path / "adapter")
    trained = ZoomZero(engine.model, engine.processor).answer(clip.path, question.question, question.options)
    loaded = ZoomZero.from_pretrained(tmp_path / "adapter", device="cpu")
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not hasattr(loaded.model, "get_base_model")
    answer = loaded.answer(clip.path, question.question, question.options)
    assert (answer.letter, answer.spans) == (trained.letter, trained.spans)
    assert answer.confidence == pytest.approx(trained.confidence, abs=1e-5)
    loaded.model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        load_model(tmp_path / "merged", "cpu").lm_head.weight, loaded.model.lm_head.weight, rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (PrefixTuningConfig(num_virtual_tokens=2), TypeError, "must be a peft.LoraConfig, got PrefixTuningConfig"),
        (_lora(use_dora=True), ValueError, "peft_config.use_dora must stay False, got True; the start model"),
        (_lora(modules_to_save=["norm"]), ValueError, "peft_config.modules_to_save must stay None, got"),
        (_lora(bias="all"), ValueError, "peft_config.bias must stay 'none', got 'all'"),
        (_lora(target_modules=["lm_head"]), ValueError, "adapter to `lm_head` is not supported"),
    ],
)
def test_other_adapters_are_refused(build: Build, config: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(peft_config=config)


def test_generation_uses_the_adapters(build: Build, varied_rewards: None) -> None:
    trainer = build(peft_config=_lora())
    rows = [dict(row) for row in trainer.train_dataset.select([0])]
    prompts = trainer.encoder.prepare_coarse(rows)
    from zoomzero.looks import through_tower

    options = SamplingOptions(12, (1,), 0, temperature=0.0)
    encoded = through_tower(trainer.policy.model, prompts)  # type: ignore[arg-type]
    ours = generate(trainer.policy.model, encoded, options)
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    theirs = generate(merged, encoded, options)
    assert torch.equal(ours.token_ids, theirs.token_ids)
    torch.testing.assert_close(ours.logps, theirs.logps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_loads_frozen_weights_in_the_computations_type(
    rows: list[dict[str, Any]], varied_rewards: None, tmp_path: Path, bf16: bool
) -> None:
    """Adapters stay float32, in which steps of 1e-6 are not lost."""
    samples = load_annotations(Path(rows[0]["video"]).parent / "annotations.json")
    config = train_config(
        tmp_path / "out", steps=1, prompts=2, num_generations=4, max_completion_length=6, bf16=bf16, warmup_steps=0
    )
    trained, history = train(None, samples, config, peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    types = {name: parameter.dtype for name, parameter in trained.model.named_parameters()}
    assert {kind for name, kind in types.items() if "lora_" in name} == {torch.float32}
    frozen = torch.bfloat16 if bf16 else torch.float32
    assert {kind for name, kind in types.items() if "lora_" not in name} == {frozen}
    assert history[0]["grad_norm"] > 0
    assert ZoomZero.from_pretrained(tmp_path / "out").model.dtype == torch.float32
