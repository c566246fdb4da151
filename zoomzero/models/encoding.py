"""Prompts encoded once, and visual features in their places.

A prompt is encoded once (token ids, M-RoPE positions, visual features) and then used by every forward pass: prefill,
packed log-probabilities, zoom scoring. Only the token embeddings are looked up anew, because training changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoomzero.models.batches import by_tokens
from zoomzero.models.positions import mrope_positions
from zoomzero.models.segment_attention import segment_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Patches in one run of the vision tower: a coarse look at the published budget (8192 tokens of 2x2 patches) fills it.
PATCHES_PER_RUN = 8192 * 4


@dataclass(frozen=True)
class PlacedVideo:
    """A video in a prompt, for those who lay out its tokens and positions themselves."""

    grid: tuple[int, int, int]
    """(t, h, w) in patches."""
    seconds: float
    """From one temporal patch to the next."""
    times: tuple[float, ...]
    """Seconds of the temporal patches."""


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for any forward pass."""

    input_ids: Tensor
    """int64 [L], visual placeholders included."""
    position_ids: Tensor
    """int64 [3, L], M-RoPE (time, height, width)."""
    features: Tensor
    """[number of visual placeholders, D * (1 + depths)], this prompt's part of `video_features`."""
    videos: tuple[PlacedVideo, ...] = ()
    """The prompt's videos in order, where they are known."""

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt: one beyond the largest so far, over all three axes."""
        return int(self.position_ids.max()) + 1


# Note [Features of several depths]
# Qwen3-VL's vision tower gives, beside its output, features of some of its inner layers, which are added to the hidden
# states behind the language model's first layers (https://arxiv.org/abs/2406.04334). They travel side by side in one
# tensor, [tokens, D * (1 + depths)], as vLLM hands them over too: whoever caches, averages or slices features needs to
# know nothing of it. `language_inputs` takes them apart.


def video_features(model: PreTrainedModel, videos: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Features of several videos, from runs of the vision tower of at most `PATCHES_PER_RUN` patches, or one video.

    videos: (pixel_values_videos [t*h*w, C], video_grid_thw int64 [k, 3]) of each prompt. Returns for each prompt
    [sum(t*h*w) / merge**2, D * (1 + depths)], on the model's device and in its dtype; depths is 0 but for Qwen3-VL, see
    Note [Features of several depths].
    """
    if not videos:
        return []
    features: list[Tensor] = []
    for part in by_tokens([len(pixels) for pixels, _ in videos], PATCHES_PER_RUN):
        features += _run_of_tower(model.model.visual, [videos[index] for index in part], model.device)
    return features


def _run_of_tower(tower: Any, videos: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> list[Tensor]:
    pixels = torch.cat([pixels for pixels, _ in videos]).to(device=device, dtype=tower.dtype)
    grids = torch.cat([grid for _, grid in videos]).cpu()
    outputs = tower(pixels, grid_thw=grids.to(device), **segment_arguments(tower, grids))
    features = torch.cat([outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or [])], dim=-1)
    merge = tower.spatial_merge_size
    sizes = [int(grid.prod(-1).sum()) // merge**2 for _, grid in videos]
    return list(features.split(sizes))


def language_inputs(
    model: PreTrainedModel, input_ids: Tensor, is_video: Tensor, features: Sequence[Tensor]
) -> dict[str, Any]:
    """Keyword arguments for the language model: token embeddings, with `features` in order where `is_video` is true.

    input_ids int64 [B, L]; is_video bool [B, L]; features as `video_features` gives them, row by row. The embeddings
    are inputs_embeds [B, L, D]; features of further depths come beside them, under transformers' names. ValueError when
    the number of places and of features differ.
    """
    embeds: Tensor = model.get_input_embeddings()(input_ids)
    flat = torch.cat(list(features)).to(embeds.dtype)
    num_places, width = int(is_video.sum()), embeds.shape[-1]
    if num_places != flat.shape[0]:
        raise ValueError(
            f"language_inputs: the prompts hold {num_places} video placeholders, got {flat.shape[0]} video features; "
            "encode each prompt with the frames it was tokenized for"
        )
    own, *deeper = flat.split(width, dim=-1)
    inputs: dict[str, Any] = {"inputs_embeds": embeds.masked_scatter(is_video.unsqueeze(-1), own)}
    if deeper:
        inputs |= {"visual_pos_masks": is_video, "deepstack_visual_embeds": deeper}
    return inputs


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
