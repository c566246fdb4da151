"""The Python of docs/drop_in.md, run as it stands there. Its part for verl runs in test_integrations_verl.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.documentation import python_block
from support.tiny_trl import VOCAB, make_model, make_trainer, num_characters
from trl import GRPOTrainer

from zoomzero_kernels import reference

PAGE = "drop_in.md"


def plain_loop_names() -> dict[str, Any]:
    """What the page says that a reader has: two prompts of three tokens, two responses of at most six to each."""
    generator = torch.Generator().manual_seed(0)
    model = make_model()
    input_ids = torch.randint(0, VOCAB - 2, (4, 9), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)
    input_ids[:, 3:][~mask] = VOCAB - 2
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "input_ids": input_ids,
        "attention_mask": torch.cat([torch.ones(4, 3), mask], dim=1).long(),
        "token_ids": input_ids[:, 3:],
        "mask": mask,
        "rewards": torch.rand(4, 2, generator=generator),
        "group_ids": torch.tensor([0, 0, 1, 1]),
        "segments": torch.randint(0, 2, (4, 6), generator=generator).to(torch.uint8),
    }


def test_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    names = plain_loop_names()
    inputs = {"input_ids": names["input_ids"], "attention_mask": names["attention_mask"]}
    logits = names["model"](**inputs).logits[:, 2:-1].detach()
    exec(python_block(PAGE, "linear_selective_logps"), names)
    first = [names[key] for key in ("token_ids", "advantages", "mask")]
    torch.testing.assert_close(names["old_logps"], reference.selective_logps(logits, names["token_ids"]))
    start = reference.grpo_loss(logits, *first, old_logps=names["old_logps"]).loss
    # The printed loss is that of the fourth pass, after three updates on one batch.
    assert names["output"].loss.item() < start.item() - 0.05
    assert "tensor(" in capsys.readouterr().out


def test_trl_mixin(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(python_block(PAGE, "class Trainer("), names)
    trainer = make_trainer(names["Trainer"], tmp_path, beta=0.0, max_steps=2)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.state.log_history[0]["entropy"] > 0


def test_trl_with_credit_for_tokens(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(python_block(PAGE, "class TokenCreditTrainer("), names)

    def first_word(completions: list[str], **_: Any) -> list[float]:
        return [float(text.split()[0][1:]) if text else 0.0 for text in completions]

    batches: list[tuple[dict[str, Any], torch.Tensor]] = []

    class Watched(names["TokenCreditTrainer"]):  # type: ignore[name-defined, misc]
        marker_id = 7

        def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            with torch.no_grad():
                theirs = GRPOTrainer._compute_loss(self, model, inputs)
            loss = super()._compute_loss(model, inputs)
            torch.testing.assert_close(loss.detach(), theirs, rtol=1e-5, atol=1e-6)
            batches.append((inputs, self.all_rewards))
            return loss

    # 64 responses of about five tokens from a vocabulary of 50: several hold the marker in their middle.
    trainer = make_trainer(Watched, tmp_path, rewards=[num_characters, first_word], beta=0.0, max_steps=8)
    trainer.train()
    assert len(batches) == 16
    for inputs, rewards in batches:
        assert inputs["advantages"].shape == inputs["completion_ids"].shape
        assert rewards.shape == (8, 2)
    mixed = [
        row[mask.bool()].unique().numel() > 1
        for inputs, _ in batches
        for row, mask in zip(inputs["advantages"], inputs["completion_mask"], strict=True)
    ]
    assert any(mixed), "no response had tokens of both segments"
