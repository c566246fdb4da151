"""The Python of docs/shared_prefixes.md, run as it stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.documentation import python_block
from support.tiny_trl import VOCAB, make_model, make_trainer

import zoomzero

PAGE = "shared_prefixes.md"


def run(phrase: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the block that holds `phrase` with these names; blocks before it imported zoomzero."""
    names["zoomzero"] = zoomzero
    exec(compile(python_block(PAGE, phrase), PAGE, "exec"), names)
    return names


def test_prompts_and_completions() -> None:
    model = make_model()
    names = {
        "model": model,
        "prompts": [[4, 5, 6, 7], [8, 9]],
        "completions": [[[1, 2, 3], [4]], [[5, 6], [7]]],
        "advantages": [[0.5, -0.5], [1.0, -1.0]],
    }
    logps = run("shared.logps", names)["logps"]
    assert [[len(each) for each in group] for group in logps] == [[3, 1], [2, 1]]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    input_ids = torch.randint(0, VOCAB - 2, (1, 30), generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    input_ids[:, 24:] = torch.arange(24).view(4, 6)
    names = {"model": model, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    torch.testing.assert_close(run("model(input_ids", names)["logits"], model(input_ids).logits, rtol=1e-4, atol=1e-6)
    assert "2.5 times fewer tokens" in capsys.readouterr().out


def test_the_attention(capsys: pytest.CaptureFixture[str]) -> None:
    names = {name: torch.randn(1, heads, 1003, 64) for name, heads in (("query", 16), ("key", 2), ("value", 2))}
    assert run("branch_lengths", names)["out"].shape == (1, 16, 1003, 64)
    assert "'cpu': 'flash'" in capsys.readouterr().out


def test_trl(tmp_path: Path) -> None:
    """The class on the page trains, and logs what it gained; its numbers are those of test_trl_shared_prefix.py."""
    trainer_class = run("SharedPrefixMixin, FusedGRPOLossMixin, GRPOTrainer", {"__name__": "page"})["Trainer"]
    trainer = make_trainer(trainer_class, tmp_path, per_device_train_batch_size=8, num_generations=4)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    gains = [entry["shared_prefix/times_fewer_tokens"] for entry in trainer.state.log_history if "loss" in entry]
    assert gains
    assert min(gains) > 1
    assert any(not torch.equal(now, old) for now, old in zip(trainer.model.parameters(), before, strict=True))
