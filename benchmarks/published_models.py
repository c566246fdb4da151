"""Sizes of published checkpoints, by their config files, and what training them needs of a card by our estimate."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from transformers import PretrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from zoomzero.answering.memory import GIB
from zoomzero.training import ZoomZeroConfig
from zoomzero.training.memory import Launch, training_memory

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CARDS = (1, 4, 8, 64)
VISUAL_TOKENS = 8192


def _qwen2_5(hidden: int, inner: int, layers: int, heads: int, key_heads: int, **more: Any) -> PretrainedConfig:
    text = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "max_window_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": more["vocab"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": more["vision_inner"], "num_heads": 16}
    return Qwen2_5_VLConfig(
        text_config={**text, "tie_word_embeddings": more["tied"]},
        vision_config={**vision, "out_hidden_size": hidden},
        tie_word_embeddings=more["tied"],
    )


def _qwen3(hidden: int, inner: int, layers: int, heads: int, key_heads: int) -> PretrainedConfig:
    text = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 128,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }  # fmt: skip
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": hidden}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def published() -> dict[str, PretrainedConfig]:
    """Configs by name."""
    return {
        "Qwen2.5-VL-3B": _qwen2_5(2048, 11008, 36, 16, 2, vocab=151936, vision_inner=3420, tied=True),
        "Qwen2.5-VL-7B": _qwen2_5(3584, 18944, 28, 28, 4, vocab=152064, vision_inner=3420, tied=False),
        "Qwen3-VL-8B": _qwen3(4096, 12288, 36, 32, 8),
        "Qwen2.5-VL-32B": _qwen2_5(5120, 27648, 64, 40, 8, vocab=152064, vision_inner=3456, tied=False),
    }


def settings_of(num_cards: int, *, lora: bool) -> ZoomZeroConfig:
    """As the recipes of `configs/` have them: bfloat16, checkpointing, one group of 8 x 512 tokens at a time."""
    sharded = {"fsdp": True, "fsdp_config": {"version": 2}} if num_cards > 1 and not lora else {}
    return ZoomZeroConfig(
        output_dir="unused", use_cpu=True, bf16=True, gradient_checkpointing=True, per_device_train_batch_size=8,
        gradient_accumulation_steps=8, max_completion_length=512, offload_reference=not lora, report_to=[], **sharded,
    )  # fmt: skip


def memory_table() -> str:
    """A Markdown table: GiB of each card, in bold where a card of 80 GiB has less."""
    counts = " | ".join("1 card" if count == 1 else f"{count} cards" for count in CARDS)
    lines = [f"| Checkpoint | Trained | {counts} |"]
    lines.append("| --- | --- |" + " --- |" * len(CARDS))
    for name, config in published().items():
        for lora in (False, True):
            peft_config = LoraConfig(task_type="CAUSAL_LM", r=32, target_modules=TARGETS) if lora else None
            cells = []
            # Adapters are trained by DDP, whose buckets of their gradients are too small to show.
            for count in CARDS[:1] if lora else CARDS:
                launch = Launch(count, "cuda", 80 * GIB)
                needs = training_memory(
                    config,
                    settings_of(count, lora=lora),
                    launch,
                    visual_tokens=VISUAL_TOKENS,
                    peft_config=peft_config,
                )
                shown = f"{needs.total / GIB:.0f}"
                cells.append(shown if needs.total <= launch.card_bytes else f"**{shown}**")
            cells *= len(CARDS) // len(cells)
            lines.append(
                f"| {name} | {'LoRA, rank 32' if lora else 'all but the vision tower'} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)
