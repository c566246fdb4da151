"""A random small checkpoint of every family, made by transformers' own classes, with the tiny tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from zoomzero.inputs import VideoInputs
from zoomzero.models import family_of
from zoomzero.settings import PassSettings, ZoomSettings
from zoomzero.synthetic import tiny_tokenizer

FAMILY_NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# 64 coarse frames of one token per two frames, or 4 zoomed frames of 16 tokens per two.
SETTINGS = ZoomSettings(
    coarse=PassSettings(budget_tokens=32, max_frames=64, min_frame_tokens=1),
    zoom=PassSettings(budget_tokens=32, sample_fps=4.0, max_frames=4, min_frame_tokens=1),
)
_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 48, "hidden_size": 96, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 48, "intermediate_size": 96, "out_hidden_size": 96, "window_size": 32,
        "fullatt_block_indexes": [1], "tokens_per_second": 2,
    },
    "qwen3_vl": {
        "hidden_size": 48, "intermediate_size": 96, "out_hidden_size": 96, "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 64,
    },
}  # fmt: skip


def small_model(name: str, seed: int = 0) -> PreTrainedModel:
    """Hidden 96, 3 layers of 3 heads; a vision tower of 3 layers over patches of 8 pixels. Float32, evaluation mode."""
    tokenizer = tiny_tokenizer()
    vocabulary = tokenizer.get_vocab()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3,
        "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32, "max_position_embeddings": 4096,
        "initializer_range": 0.08,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [8, 4, 4]},
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {"depth": 3, "num_heads": 3, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
              "in_channels": 3, "initializer_range": 0.12, **_VISION[name]}  # fmt: skip
    if name == "qwen3_vl":
        # As published; transformers always interleaves, vLLM asks the config.
        text["rope_parameters"]["mrope_interleaved"] = True
    else:
        del text["head_dim"]
    config = AutoConfig.for_model(
        name,
        text_config=text,
        vision_config=vision,
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = family_of(config).model_class()(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def save_small_checkpoint(name: str, folder: str | os.PathLike[str]) -> Path:
    """The small model as a complete checkpoint of its family."""
    model = small_model(name)
    model.save_pretrained(folder)
    family = family_of(model.config)
    VideoInputs(tiny_tokenizer(), SETTINGS, family.geometry(model.config), family=family).save_pretrained(folder)
    return Path(folder)
