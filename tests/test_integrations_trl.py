"""The fused loss inside TRL's GRPOTrainer equals TRL's own _compute_loss, in every loss type and level."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from zoomzero.integrations.trl import FusedGRPOLossMixin

VOCAB = 50


class FusedTrainer(FusedGRPOLossMixin, GRPOTrainer):
    pass


def make_trainer(folder: Path, trainer: type[GRPOTrainer] = FusedTrainer, **options: Any) -> GRPOTrainer:
    """A trainer of a tiny random model; nothing is downloaded."""
    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<pad>": VOCAB - 2, "<eos>": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCAB, num_key_value_heads=2, pad_token_id=VOCAB - 2, **sizes)
    arguments = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_generations=2, max_completion_length=6,
        gradient_accumulation_steps=2, use_cpu=True, bf16=False, report_to=[], logging_steps=1, max_steps=1,
        epsilon=0.2, epsilon_high=0.28, **options,
    )  # fmt: skip
    return trainer(
        model=Qwen2ForCausalLM(config).float(),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": f"w{i} w{i + 1}"} for i in range(16)]),
        processing_class=fast,
    )


def make_inputs(per_token: bool, seed: int = 0) -> dict[str, Any]:
    """A micro-batch as TRL's generation leaves it, off-policy and with padded completions."""
    generator = torch.Generator().manual_seed(seed)
    completion = torch.randint(0, VOCAB - 2, (4, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)).long()
    shape = (4, 6) if per_token else (4,)
    return {
        "prompt_ids": torch.randint(0, VOCAB - 2, (4, 3), generator=generator),
        "prompt_mask": torch.ones(4, 3, dtype=torch.int64),
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": torch.randn(shape, generator=generator),
        "old_per_token_logps": -3.9 + 0.3 * torch.randn(4, 6, generator=generator),
        "ref_per_token_logps": -3.9 + 0.3 * torch.randn(4, 6, generator=generator),
        "num_items_in_batch": torch.tensor(31.0),
    }


def loss_and_gradient(trainer: GRPOTrainer, method: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[Any]]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.zero_grad()
    loss = method(trainer, trainer.model, copy.deepcopy(inputs))
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equals_trl(loss_type: str, level: str, tmp_path: Path) -> None:
    options = {"loss_type": loss_type, "importance_sampling_level": level, "temperature": 0.8}
    trainer = make_trainer(tmp_path, use_bias_correction_kl=False, **options)
    # Set late: with beta in the configuration TRL would load a reference model from a checkpoint.
    trainer.beta = 0.05
    for per_token in (False, True):
        inputs = make_inputs(per_token)
        ours, our_grads = loss_and_gradient(trainer, FusedTrainer._compute_loss, inputs)
        theirs, their_grads = loss_and_gradient(trainer, GRPOTrainer._compute_loss, inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for mine, other in zip(our_grads, their_grads, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
        metrics = trainer._metrics["train"]
        for name in ("kl", "entropy") + (("clip_ratio/region_mean",) if level == "token" else ()):
            assert metrics[name][-2] == pytest.approx(metrics[name][-1], abs=1e-5), name


def test_trains(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, beta=0.0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "cispo"}, "unsupported loss_type, got 'cispo'; use one of grpo, bnpo, dr_grpo, dapo"),
        ({"delta": 2.0}, "the fused loss has no delta"),
        ({"top_entropy_quantile": 0.5}, "the fused loss has no top_entropy_quantile"),
    ],
)
def test_refuses_options_it_would_ignore(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        FusedTrainer._compute_loss(trainer, trainer.model, make_inputs(False))


def test_refuses_weighted_kl(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, use_bias_correction_kl=True)
    trainer.beta = 0.05
    with pytest.raises(ValueError, match="the fused loss has no use_bias_correction_kl"):
        FusedTrainer._compute_loss(trainer, trainer.model, make_inputs(False))


def test_refuses_inputs_that_would_be_dropped(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    with pytest.raises(ValueError, match="inputs pixel_values_videos are not passed on"):
        FusedTrainer._compute_loss(trainer, trainer.model, {**make_inputs(False), "pixel_values_videos": torch.ones(1)})
