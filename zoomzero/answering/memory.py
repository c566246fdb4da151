"""What answering needs of a device's memory, estimated from a checkpoint's config before its weights are loaded.

Weights are counted exactly. Of a forward, the largest tensors that live at once are: pixels and features of the frames,
keys and values of the prompt, and the intermediate values of one layer, of the vision tower or the language model,
whichever are more. All of them grow with the visual tokens; what the allocator wastes is not in it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoomzero.models.adapters import ADAPTER_CONFIG, base_of
from zoomzero.models.families import family_of
from zoomzero.models.loading import checkpoint_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 1 << 30
# Tokens of a prompt's texts; a question with its options and the instructions have a few hundred.
TEXT_TOKENS = 600
# Four bits and their scale per block of 64.
BYTES_IN_4BIT = 0.5 + 4 / 64
PIXEL_BYTES = 4


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for."""

    weights: int
    """Of the model."""
    fixed: int
    """Of a forward of one question, whatever its visual tokens."""
    per_token: int
    """Of a forward of one question, per visual token."""

    def total(self, budget_tokens: int, num_questions: int = 1) -> int:
        """Bytes in all, with so many questions per forward."""
        return self.weights + num_questions * (self.fixed + budget_tokens * self.per_token)

    def largest_budget(self, free: int, num_questions: int = 1) -> int:
        """Most visual tokens that fit into `free` bytes; 0 where not even the rest fits."""
        return max(0, ((free - self.weights) // num_questions - self.fixed) // self.per_token)

    def said(self, free: int, budget_tokens: int, num_questions: int = 1) -> str:
        """In words: what it takes, and where that is too much what would fit."""
        needed = self.total(budget_tokens, num_questions)
        forward = needed - self.weights
        text = (
            f"about {needed / GIB:.2f} GiB of {free / GIB:.2f} GiB free (weights {self.weights / GIB:.2f}, a forward "
            f"of {num_questions} x {budget_tokens} visual tokens {forward / GIB:.2f})"
        )
        if needed <= free:
            return text
        budget = self.largest_budget(free, num_questions)
        if budget:
            remedy = f"--budget-tokens {budget} would fit" + (", or fewer questions at a time" * (num_questions > 1))
        else:
            remedy = "no budget would; take --dtype bfloat16, --load-in-4bit or --device-map auto, or a smaller model"
        return f"{text}: too much; {remedy}"


def estimate_memory(
    path: str | os.PathLike[str], dtype: torch.dtype, *, max_new_tokens: int, load_in_4bit: bool = False
) -> MemoryEstimate:
    """Of a checkpoint, of which the config alone is read.

    Args:
        path: checkpoint folder or hub name.
        dtype: of the weights and of what is computed with them.
        max_new_tokens: longest response.
        load_in_4bit: weights of linear layers in four bits.

    Raises:
        ValueError, OSError: there is no checkpoint of a supported family.
    """
    from transformers import AutoConfig

    adapter = checkpoint_file(path, ADAPTER_CONFIG)
    config = AutoConfig.from_pretrained(path if adapter is None else base_of(adapter.parent))
    family = family_of(config)
    with torch.device("meta"):
        model: Any = family.model_class()(config)
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if load_in_4bit:
        # The embeddings, to which the head may be tied, stay as they are.
        packed = sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
        )
        weights -= int(packed * (dtype.itemsize - BYTES_IN_4BIT))
    text: Any = config.get_text_config()
    kept = key_value_bytes(config, dtype)
    logits = 3 * text.vocab_size * torch.float32.itemsize
    fixed = logits + (TEXT_TOKENS + max_new_tokens) * (kept + text_layer_values(config) * dtype.itemsize)
    vision, pixels = vision_values(config)
    features = text.hidden_size * (1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ())))
    layer = max(vision, text_layer_values(config)) * dtype.itemsize
    return MemoryEstimate(weights, fixed, kept + layer + features * dtype.itemsize + pixels * PIXEL_BYTES)


def key_value_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    text: Any = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * width * dtype.itemsize


def text_layer_values(config: PretrainedConfig) -> int:
    """Numbers per token that a layer of the language model holds at once: its states, queries, keys, values, and two
    products of the gated projection."""
    text: Any = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_attention_heads + 2 * text.num_key_value_heads
    return 3 * text.hidden_size + width * heads + 2 * text.intermediate_size


def vision_values(config: PretrainedConfig) -> tuple[int, int]:
    """Numbers per visual token that a layer of the vision tower holds at once, and pixels."""
    vision: Any = config.vision_config
    hidden = getattr(vision, "embed_dim", vision.hidden_size)
    inner = getattr(vision, "intermediate_size", None) or int(hidden * vision.mlp_ratio)
    patches = vision.spatial_merge_size**2
    pixels = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    return patches * (6 * hidden + 2 * inner), patches * pixels


def free_bytes(device: str | torch.device | None) -> int:
    """Bytes that are free on a device: the GPU if there is one, unless told."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"memory: /proc/meminfo must say MemAvailable, got none for {where}; run on Linux")
