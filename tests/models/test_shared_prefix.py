"""Inside `shared_prefix` a model gives the hidden states, log-probabilities and gradients that it gives without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from support.shared_prefix_models import (
    TEXT_MODELS,
    assert_close,
    numbers,
    results,
    rows_with_visuals,
    text_model,
    text_rows,
    vision_model,
)
from support.tiny_qwen import SHORT, ZOOM, random_inputs, random_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

import zoomzero


@contextlib.contextmanager
def sizes_seen(module: torch.nn.Module) -> Iterator[list[int]]:
    """Elements of the first tensor with which `module` is called."""
    seen: list[int] = []

    def look(_: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(next(x for x in (*arguments, *options.values()) if isinstance(x, Tensor)).shape[-2])

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize("family", TEXT_MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_rows_give_what_they_give_unpacked(family: str, attention: str, checkpointing: bool) -> None:
    model, rows = text_model(family, attention).train(), text_rows()
    if checkpointing:
        model.gradient_checkpointing_enable()
    truth = results(model, rows, use_cache=False)
    with zoomzero.shared_prefix(model) as packed, sizes_seen(model.model.layers[0]) as tokens:
        ours = results(model, rows)
    assert_close(ours, truth)
    assert tokens[0] == packed.tokens_computed < packed.tokens_given
    assert_close(results(model, rows, use_cache=False), truth)  # as before, behind the context


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_rows_with_images_and_videos(family: str, checkpointing: bool, frozen: bool) -> None:
    model, rows = vision_model(family), rows_with_visuals(family)
    model.model.visual.requires_grad_(not frozen)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    with sizes_seen(model.model.visual) as patches:
        truth = results(model, rows, use_cache=False)
        plain = sum(patches)
        with zoomzero.shared_prefix(model):
            ours = results(model, rows)
    assert_close(ours, truth)
    assert any(name.startswith("model.visual") for name in ours) is not frozen
    assert sum(patches) - plain == plain // 2  # two rows a visual: the tower sees each once


def test_positions_that_the_caller_gives() -> None:
    model, rows = text_model("qwen2"), text_rows()
    positions = (rows["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    truth = results(model, rows, position_ids=positions)
    with zoomzero.shared_prefix(model):
        assert_close(results(model, rows, position_ids=positions), truth)


def test_logps_of_prompts_and_completions() -> None:
    model = text_model("llama")
    prompts = [numbers(25, 0), torch.tensor(numbers(11, 1))]
    completions = [[numbers(4, 2), numbers(9, 3), [], numbers(1, 4)], [torch.tensor(numbers(5, 5))]]
    with zoomzero.shared_prefix(model) as packed:
        got = packed.logps(prompts, completions, temperature=0.7)
    assert [[len(each) for each in group] for group in got] == [[4, 9, 0, 1], [5]]
    for prompt, group, answers in zip(prompts, completions, got, strict=True):
        for completion, logps in zip(group, answers, strict=True):
            tokens = torch.as_tensor(completion, dtype=torch.long)
            row = torch.cat((torch.as_tensor(prompt), tokens))[None]
            logits = model(row).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    sum(each.sum() for group in got for each in group).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_logps_of_prompts_with_videos() -> None:
    """The positions are the model's own, so its own forward over whole rows gives the same."""
    model = random_model(kv_heads=1)
    prompts = [random_inputs(shape, seed) for seed, shape in enumerate((ZOOM, SHORT))]
    completions = [[numbers(4, 2), numbers(9, 3)], [numbers(5, 5)]]
    with zoomzero.shared_prefix(model) as packed, sizes_seen(model.model.visual) as patches:
        got = packed.logps(prompts, completions)
    assert patches == [sum(len(prompt["pixel_values_videos"]) for prompt in prompts)]
    for prompt, group, answers in zip(prompts, completions, got, strict=True):
        for completion, logps in zip(group, answers, strict=True):
            tokens = torch.tensor(completion)
            row = {
                **prompt,
                "input_ids": torch.cat((prompt["input_ids"], tokens[None]), dim=1),
                "mm_token_type_ids": torch.nn.functional.pad(prompt["mm_token_type_ids"], (0, len(tokens))),
                "attention_mask": None,
            }
            logits = model(**row).logits[0, prompt["input_ids"].shape[1] - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)


def test_a_backward_pass_after_the_context_with_checkpointing() -> None:
    """Gradient checkpointing runs the layers again when the hooks are gone."""
    model, rows = text_model("qwen2").train(), text_rows()
    truth = results(model, rows)
    model.gradient_checkpointing_enable()
    model.zero_grad()
    with zoomzero.shared_prefix(model):
        logits = model(**rows).logits
    real = rows["attention_mask"].bool()
    logps = logits[:, :-1].log_softmax(-1).gather(-1, rows["input_ids"][:, 1:, None])[..., 0]
    (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps))[real[:, 1:] & real[:, :-1]].sum().backward()
    assert_close(
        {name: each.grad for name, each in model.named_parameters()},
        {name: truth[name] for name, _ in model.named_parameters()},
    )


def test_tuples_and_the_call_by_position() -> None:
    model, rows = text_model("qwen2").eval(), text_rows()
    ids = rows["input_ids"][1:3]  # without padding: one completion is a token long, the others are not
    expected = model(ids, return_dict=False)[0]
    with zoomzero.shared_prefix(model) as packed:
        torch.testing.assert_close(model(ids, return_dict=False)[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.model(ids)[0], model.model(ids, use_cache=True)[0], rtol=1e-5, atol=1e-5)
    assert packed.tokens_computed > 0


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped_by_lora(model: PreTrainedModel) -> torch.nn.Module:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("wrap", [wrapped_by_lora, DistributedDataParallel, None])
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_wrapped_by_ddp_and_by_lora(family: str, wrap: Any, checkpointing: bool, process_group: None) -> None:
    """Each, and LoRA inside DDP."""
    text = family == "llama"
    model = (text_model(family) if text else vision_model(family)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()  # as PEFT asks
    model = wrap(model) if wrap else DistributedDataParallel(wrapped_by_lora(model))
    rows = text_rows() if text else rows_with_visuals(family)
    truth = results(model, rows, use_cache=False)
    with zoomzero.shared_prefix(model) as packed:
        assert_close(results(model, rows), truth)
        assert packed.tokens_computed < packed.tokens_given
        model.zero_grad()
        (logps,) = packed.logps([numbers(25, 0)], [[numbers(4, 2), numbers(9, 3)]])
        (logps[0].sum() + logps[1].sum()).backward()
    language = [each for name, each in model.named_parameters() if each.requires_grad and "visual" not in name]
    assert all(parameter.grad is not None for parameter in language)
