"""Prompts encoded once, and visual features in their places.

A prompt is encoded once (token ids, M-RoPE positions, visual features) and then used by every forward pass: prefill,
packed log-probabilities, zoom scoring. Only the token embeddings are looked up anew, because training changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.models.positions import mrope_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for any forward pass."""

    input_ids: Tensor
    """int64 [L], visual placeholders included."""
    position_ids: Tensor
    """int64 [3, L], M-RoPE (time, height, width)."""
    features: Tensor
    """[number of visual placeholders, D], the vision tower's output for this prompt's videos, as `video_features`."""

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt: one beyond the largest so far, over all three axes."""
        return int(self.position_ids.max()) + 1


def video_features(model: PreTrainedModel, videos: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Features of several videos from one run of the vision tower.

    videos: (pixel_values_videos [t*h*w, C], video_grid_thw int64 [k, 3]) of each prompt. Returns for each prompt
    [sum(t*h*w) / merge**2, D], on the model's device and in its dtype.
    """
    if not videos:
        return []
    tower = model.model.visual
    pixels = torch.cat([pixels for pixels, _ in videos]).to(device=model.device, dtype=tower.dtype)
    grids = torch.cat([grid for _, grid in videos])
    outputs = tower(pixels, grid_thw=grids.to(model.device))
    merge = tower.spatial_merge_size
    sizes = [int(grid.prod(-1).sum()) // merge**2 for _, grid in videos]
    return list(outputs.pooler_output.split(sizes))


def embed_tokens(model: PreTrainedModel, input_ids: Tensor, is_video: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Input embeddings [B, L, D]: token embeddings, with `features` (row by row, in order) where `is_video` is true.

    input_ids int64 [B, L]; is_video bool [B, L]. ValueError when the number of places and of features differ.
    """
    embeds = model.get_input_embeddings()(input_ids)
    flat = torch.cat(list(features)).to(embeds.dtype)
    num_places = int(is_video.sum())
    if num_places != flat.shape[0]:
        raise ValueError(
            f"embed_tokens: the prompts hold {num_places} video placeholders, got {flat.shape[0]} video features; "
            "encode each prompt with the frames it was tokenized for"
        )
    filled: Tensor = embeds.masked_scatter(is_video.unsqueeze(-1), flat)
    return filled


def encode_prompts(model: PreTrainedModel, inputs: Sequence[Mapping[str, Tensor]]) -> list[EncodedPrompt]:
    """Encode the processor's outputs for several prompts (each with its own video) with one run of the vision tower.

    Each mapping: input_ids, mm_token_type_ids [1, L], pixel_values_videos [patches, C], video_grid_thw [k, 3] and,
    where the family has it, second_per_grid_ts [k]. Gradients reach the vision tower unless the caller disables them.
    """
    features = video_features(model, [(item["pixel_values_videos"], item["video_grid_thw"]) for item in inputs])
    device = model.device
    return [
        EncodedPrompt(item["input_ids"][0].to(device), mrope_positions(model.config, item)[0].to(device), feature)
        for item, feature in zip(inputs, features, strict=True)
    ]
