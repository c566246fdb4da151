"""Floating-point operations of a pass, by formula of the model's config.

Multiplications and additions of matrix products, two per pair of numbers; norms, activations and softmax are left out,
as is usual. A pass costs what it would cost alone: that several questions on a video share its frames' features, or
that padded prompts share a forward, changes the time, not these figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def text_flops(config: PretrainedConfig, num_prompt: int, num_written: int) -> float:
    """The language model over a prompt of num_prompt tokens and num_written tokens written after it (at least 1).

    The last token written is never read: num_prompt + num_written - 1 positions see themselves and those before them.
    """
    text: Any = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    length = num_prompt + num_written - 1
    projections = text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)
    attention = queries * (length + 1)
    layers = text.num_hidden_layers * length * (2 * projections + 2 * attention)
    return float(layers + 2 * num_written * text.hidden_size * text.vocab_size)


def vision_flops(config: PretrainedConfig, grid: tuple[int, int, int]) -> float:
    """The vision tower over a video of (t, h, w) patches: embedding, layers with full or windowed attention, merger."""
    vision: Any = config.vision_config
    # Qwen2-VL calls its tower's width embed_dim, and hidden_size what it hands on.
    width = getattr(vision, "embed_dim", vision.hidden_size)
    is_gated = config.model_type == "qwen2_5_vl"
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    merged = vision.spatial_merge_size**2
    channels = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    output = config.get_text_config().hidden_size
    per_patch = vision.depth * (4 * width**2 + (3 if is_gated else 2) * width * inner) + channels * width
    per_token = (width * merged) ** 2 + width * merged * output
    steps, rows, columns = grid
    patches = steps * rows * columns
    pairs = vision.depth * steps * (rows * columns) ** 2
    if is_gated:
        full = len(vision.fullatt_block_indexes)
        window = vision.window_size // vision.patch_size
        windowed = steps * _window_pairs(rows, window) * _window_pairs(columns, window)
        pairs = full * steps * (rows * columns) ** 2 + (vision.depth - full) * windowed
    return float(2 * (patches * per_patch + patches // merged * per_token) + 4 * width * pairs)


def _window_pairs(side: int, window: int) -> int:
    """Ordered pairs of places along a side that lie in the same window."""
    whole, rest = divmod(side, window)
    return whole * window**2 + rest**2
