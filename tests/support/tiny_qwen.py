"""A random 3-layer Qwen2.5-VL and prompts with random frames, for tests of the model-facing code."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from zoomzero.looks import PreparedPrompt
from zoomzero.models import mrope_positions

VIDEO_TOKEN, START_TOKEN, END_TOKEN, PAD_TOKEN, EOS_TOKEN, VOCAB_SIZE = 90, 91, 92, 0, 1, 100
PATCH_COLUMNS = 3 * 2 * 8 * 8


def random_model(
    seed: int = 0, kv_heads: int = 3, attn_implementation: str = "sdpa"
) -> Qwen2_5_VLForConditionalGeneration:
    """The tiny configuration of the demo with random weights, in evaluation mode, float32."""
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": kv_heads,
            "intermediate_size": 256, "vocab_size": VOCAB_SIZE,
            "initializer_range": 0.08, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [8, 4, 4]},
            "bos_token_id": None, "eos_token_id": EOS_TOKEN, "pad_token_id": PAD_TOKEN,
        },
        vision_config={
            "depth": 2, "hidden_size": 48, "num_heads": 3, "intermediate_size": 96, "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2, "initializer_range": 0.12, "tokens_per_second": 1, "out_hidden_size": 96,
            "window_size": 32, "fullatt_block_indexes": [1],
        },
        video_token_id=VIDEO_TOKEN, vision_start_token_id=START_TOKEN, vision_end_token_id=END_TOKEN, image_token_id=93,
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = attn_implementation
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


@dataclass(frozen=True)
class PromptShape:
    """grid (t, h, w) in patches, seconds between temporal patches, text tokens after the video."""

    grid: tuple[int, int, int]
    seconds: float
    text_tokens: int


COARSE = PromptShape((32, 2, 2), 1.0, 12)  # 64 frames of 16x16: video positions run beyond the text after it
ZOOM = PromptShape((2, 8, 8), 0.5, 9)  # 4 frames of 64x64
SHORT = PromptShape((2, 4, 6), 1.0, 15)  # windows of unequal size


def random_inputs(shape: PromptShape, seed: int = 0) -> dict[str, Tensor]:
    """What a processor gives for one prompt: 4 text tokens, a video of random pixels, `text_tokens` text tokens."""
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = shape.grid
    places = frames * height * width // 4
    before = torch.randint(2, 90, (4,), generator=generator)
    after = torch.randint(2, 90, (shape.text_tokens,), generator=generator)
    video = torch.tensor([START_TOKEN] + [VIDEO_TOKEN] * places + [END_TOKEN])
    input_ids = torch.cat((before, video, after))[None]
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": 2 * (input_ids == VIDEO_TOKEN).long(),
        "pixel_values_videos": torch.randn(frames * height * width, PATCH_COLUMNS, generator=generator),
        "video_grid_thw": torch.tensor([shape.grid]),
        "second_per_grid_ts": torch.tensor([shape.seconds]),
    }


def prepared_prompts(
    model: PreTrainedModel, inputs: Sequence[dict[str, Tensor]], features: Sequence[Tensor] | None = None
) -> list[PreparedPrompt]:
    """The prompts with their videos' features, or without any with the pixels, which the tower sees in the forward."""
    visuals = features or [item["pixel_values_videos"] for item in inputs]
    return [
        PreparedPrompt(
            item["input_ids"][0],
            mrope_positions(model.config, item)[0],
            visual,
            item["video_grid_thw"],
            is_encoded=features is not None,
        )
        for item, visual in zip(inputs, visuals, strict=True)
    ]


def full_row_logits(model: Qwen2_5_VLForConditionalGeneration, inputs: dict[str, Tensor], completion: Tensor) -> Tensor:
    """The plain way: one forward over prompt + completion. Returns the logits [T, V] that predict completion [T]."""
    row = torch.cat((inputs["input_ids"], completion[None]), dim=1)
    types = torch.cat((inputs["mm_token_type_ids"], torch.zeros_like(completion)[None]), dim=1)
    positions, _ = mrope_positions(model.config, {**inputs, "input_ids": row, "mm_token_type_ids": types})
    outputs = model(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        position_ids=positions[:, None],
        mm_token_type_ids=types,
        pixel_values_videos=inputs["pixel_values_videos"],
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
    )
    return outputs.logits[0, inputs["input_ids"].shape[1] - 1 : -1]
