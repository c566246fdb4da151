"""The estimate of memory: weights and cached keys as they are, budgets that fit as it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.small_families import FAMILY_NAMES, save_small_checkpoint
from transformers import DynamicCache

from zoomzero.answering.memory import MemoryEstimate, estimate_memory, free_bytes, key_value_bytes
from zoomzero.cli import main
from zoomzero.models import load_model
from zoomzero.synthetic import make_clips, tiny_checkpoint


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_weights_and_cached_keys_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    folder = save_small_checkpoint(name, tmp_path)
    model = load_model(folder, "cpu", torch.float32)
    needs = estimate_memory(folder, torch.float32, max_new_tokens=8)
    assert needs.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate_memory(folder, torch.bfloat16, max_new_tokens=8).weights == needs.weights // 2
    assert estimate_memory(folder, torch.bfloat16, max_new_tokens=8, load_in_4bit=True).weights < needs.weights // 2
    cache = DynamicCache()
    model.model.language_model(input_ids=torch.arange(10)[None], past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert key_value_bytes(model.config, torch.float32) * 10 == held


def test_the_largest_budget_fits_and_the_next_does_not() -> None:
    needs = estimate_memory(tiny_checkpoint(), torch.float32, max_new_tokens=8)
    for free in (needs.total(32, 4), needs.total(1000, 1) + 17, 10**9):
        budget = needs.largest_budget(free, 2)
        assert needs.total(budget, 2) <= free < needs.total(budget + 1, 2) + 2
    assert needs.largest_budget(needs.weights) == 0


def test_what_fits_is_said() -> None:
    needs = MemoryEstimate(weights=3 << 30, fixed=1 << 29, per_token=1 << 20)
    assert needs.said(8 << 30, 1024) == (
        "about 4.50 GiB of 8.00 GiB free (weights 3.00, a forward of 1 x 1024 visual tokens 1.50)"
    )
    assert needs.said(4 << 30, 1024).endswith("too much; --budget-tokens 512 would fit")
    assert needs.said(5 << 30, 1024, 2).endswith("--budget-tokens 512 would fit, or fewer questions at a time")
    assert "no budget would; take --dtype bfloat16" in needs.said(2 << 30, 1024)
    assert 0 < free_bytes("cpu") < 1 << 45
    assert dataclasses.replace(needs, fixed=0).total(0) == needs.weights


def test_the_estimate_stands_before_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clips(tmp_path, 1, seed=31)[0]
    command = ["answer", str(clip.path), "Which letter?", "--options", "A", "B", "--max-new-tokens", "2"]
    assert main([*command, "--model", str(tiny_checkpoint()), "--dtype", "bfloat16", "--attn", "sdpa"]) == 0
    shown = capsys.readouterr()
    assert "memory: about 0.00 GiB of " in shown.err
    assert "a forward of 1 x 32 visual tokens" in shown.err
    assert "built-in" not in shown.err
    assert "answer: " in shown.out
    assert main([*command, "--device", "cpu", "--device-map", "auto"]) == 1
    assert "device and device_map exclude each other" in capsys.readouterr().err
