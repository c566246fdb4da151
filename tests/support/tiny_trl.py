"""TRL's GRPOTrainer on a random one-layer model and a word tokenizer, for tests; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

VOCAB = 50


def make_model() -> Qwen2ForCausalLM:
    """One random layer, float32."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCAB, num_key_value_heads=2, pad_token_id=VOCAB - 2, **sizes)
    return Qwen2ForCausalLM(config).float()


def num_characters(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between responses."""
    return [float(len(text)) for text in completions]


def make_trainer(
    trainer: type[GRPOTrainer],
    folder: Path,
    *,
    model: PreTrainedModel | None = None,
    peft_config: LoraConfig | None = None,
    rewards: list[Callable[..., list[float]]] | None = None,
    **options: Any,
) -> GRPOTrainer:
    """Two responses of at most six tokens to each of 16 prompts of two words w0 ... w47."""
    words = {f"w{i}": i for i in range(VOCAB - 2)} | {"<pad>": VOCAB - 2, "<eos>": VOCAB - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    arguments = GRPOConfig(
        output_dir=str(folder), max_completion_length=6, gradient_accumulation_steps=2, use_cpu=True, bf16=False,
        report_to=[], logging_steps=1, epsilon=0.2, epsilon_high=0.28,
        **{"per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 1, **options},
    )  # fmt: skip
    return trainer(
        model=model or make_model(),
        reward_funcs=rewards or [num_characters],
        args=arguments,
        peft_config=peft_config,
        train_dataset=Dataset.from_list([{"prompt": f"w{i} w{i + 1}"} for i in range(16)]),
        processing_class=fast,
    )
