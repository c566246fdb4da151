"""Logits as a user of transformers would compute them."""

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.models import mrope_positions


def full_row_logits(model: Qwen2_5_VLForConditionalGeneration, inputs: dict[str, Tensor], completion: Tensor) -> Tensor:
    """One plain forward over prompt, video and completion, as a user of transformers would write it."""
    row = torch.cat((inputs["input_ids"], completion[None]), dim=1)
    types = torch.cat((inputs["mm_token_type_ids"], torch.zeros_like(completion)[None]), dim=1)
    visual = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")}
    texts = {"input_ids": row, "mm_token_type_ids": types}
    positions, _ = mrope_positions(model.config, texts | visual)
    logits = model(**texts, **visual, attention_mask=torch.ones_like(row), position_ids=positions[:, None]).logits
    return logits[0, inputs["input_ids"].shape[1] - 1 : -1]
