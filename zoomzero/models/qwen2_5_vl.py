"""What generation, packing and training need from a Qwen2.5-VL model: prompts, video features and fast vision
attention.

A prompt is encoded once (token ids, M-RoPE positions, video features) and then used by every forward pass: prefill,
packed log-probabilities, zoom scoring. Only the token embeddings are looked up anew, because training changes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

# Note [Vision attention in one call]
# transformers' vision attention loops over the segments of cu_seqlens (one per frame or window) and calls the attention
# function for each: 32 calls a layer for a 64-frame clip. Only implementations whose name contains "flash" are handed
# all segments at once, with cu_seqlens. An attention function registered under such a name, and set for the vision
# sub-config alone, therefore sees the whole batch and can run equal segments as one batched SDPA call: the same
# numbers.
SEGMENT_ATTENTION = "zoomzero_segment_flash"


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Full attention inside each segment of a flat sequence; segments of one length share an SDPA call.

    query, key, value: [1, heads, S, head_dim]; cu_seq_lens_q: int32 [segments + 1], its last entry is S;
    max_length_q: the longest segment. Returns [1, S, heads, head_dim] and None (no weights), as transformers' attention
    interface asks. See Note [Vision attention in one call].
    """
    num_tokens, num_segments = query.shape[2], cu_seq_lens_q.numel() - 1
    stacked = torch.stack((query[0], key[0], value[0])).transpose(1, 2)  # [3, S, heads, head_dim]
    if num_segments * max_length_q == num_tokens:
        outputs = _equal_segments(stacked, num_segments, scaling, dropout)
        return outputs.reshape(1, num_tokens, *outputs.shape[-2:]), None
    starts, lengths = cu_seq_lens_q[:-1].long(), cu_seq_lens_q.diff()
    outputs = torch.empty_like(stacked[0])
    for length in lengths.unique().tolist():
        of_length = starts[lengths == length]
        index = (of_length[:, None] + torch.arange(length, device=starts.device)).flatten()
        part = _equal_segments(stacked[:, index], of_length.numel(), scaling, dropout)
        outputs = outputs.index_copy(0, index, part.flatten(0, 1))
    return outputs.unsqueeze(0), None


def _equal_segments(stacked: Tensor, num_segments: int, scaling: float, dropout: float) -> Tensor:
    """stacked [3, num_segments * length, heads, head_dim] -> [num_segments, length, heads, head_dim]."""
    query, key, value = stacked.unflatten(1, (num_segments, -1)).transpose(2, 3)
    outputs = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return outputs.transpose(1, 2)


AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)


def use_segment_attention(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Make the model's vision tower run segments in batched SDPA calls; the language model keeps its implementation.

    Raises TypeError for a model that is not Qwen2.5-VL.
    """
    require_qwen2_5_vl(model)
    current = model.config._attn_implementation
    model.set_attn_implementation({"": current, "text_config": current, "vision_config": SEGMENT_ATTENTION})


def require_qwen2_5_vl(model: object) -> None:
    """Raise TypeError unless `model` is a transformers Qwen2_5_VLForConditionalGeneration."""
    if not isinstance(model, Qwen2_5_VLForConditionalGeneration):
        raise TypeError(
            "zoomzero: the model must be a Qwen2_5_VLForConditionalGeneration (its positions and vision tower are used "
            f"directly), got {type(model).__name__}; load a Qwen2.5-VL checkpoint with its own class"
        )


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, ready for any forward pass.

    input_ids: int64 [L], video placeholders included; position_ids: int64 [3, L], M-RoPE (time, height, width);
    features: [number of video placeholders, D], the vision tower's output for this prompt's videos.
    """

    input_ids: Tensor
    position_ids: Tensor
    features: Tensor

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt. See Note [Positions after a video]."""
        return int(self.position_ids[0, -1]) + 1


# Note [Positions after a video]
# After a video the text resumes at start + max(height, width)/merge, although the video's own temporal positions may
# run far beyond. A completion continues the text: last prompt position + 1 (what a forward over prompt + completion
# gives). model.rope_deltas is the maximum over all positions instead, so model.generate shifts every completion token
# of a long video by up to (duration - resume point). Nothing here reads rope_deltas.


def prompt_positions(model: Qwen2_5_VLForConditionalGeneration, inputs: Mapping[str, Tensor]) -> Tensor:
    """M-RoPE positions int64 [3, L] of one prompt.

    inputs: the processor's output for one prompt: input_ids and mm_token_type_ids [1, L] and, with a video,
    video_grid_thw [videos, 3] and second_per_grid_ts [videos]. The prompt must end in text (ValueError otherwise): a
    completion continues its last position.
    """
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        video_grid_thw=inputs.get("video_grid_thw"),
        second_per_grid_ts=inputs.get("second_per_grid_ts"),
    )
    if int(inputs["mm_token_type_ids"][0, -1]) != 0:
        raise ValueError(
            "prompt_positions: the prompt must end in text, got a video placeholder as its last token; "
            "put the question and the generation prompt after the video"
        )
    return positions[:, 0]


def video_features(model: Qwen2_5_VLForConditionalGeneration, videos: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Features of several videos from one run of the vision tower.

    videos: (pixel_values_videos [t*h*w, C], video_grid_thw int64 [k, 3]) of each prompt. Returns for each prompt
    [sum(t*h*w) / merge**2, D], on the model's device and in its dtype.
    """
    if not videos:
        return []
    device, dtype = model.device, model.model.visual.dtype
    pixels = torch.cat([pixels for pixels, _ in videos]).to(device=device, dtype=dtype)
    grids = torch.cat([grid for _, grid in videos])
    outputs = model.model.visual(pixels, grid_thw=grids.to(device))
    merge = model.model.visual.spatial_merge_size
    sizes = [int(grid.prod(-1).sum()) // merge**2 for _, grid in videos]
    return list(outputs.pooler_output.split(sizes))


def encode_prompts(
    model: Qwen2_5_VLForConditionalGeneration, inputs: Sequence[Mapping[str, Tensor]]
) -> list[EncodedPrompt]:
    """Encode the processor's outputs for several prompts (each with its own video) with one run of the vision tower.

    Each mapping: input_ids, mm_token_type_ids [1, L], pixel_values_videos [patches, C], video_grid_thw [k, 3],
    second_per_grid_ts [k]. Gradients reach the vision tower unless the caller disables them.
    """
    features = video_features(model, [(item["pixel_values_videos"], item["video_grid_thw"]) for item in inputs])
    device = model.device
    return [
        EncodedPrompt(item["input_ids"][0].to(device), prompt_positions(model, item).to(device), feature)
        for item, feature in zip(inputs, features, strict=True)
    ]


def embed_tokens(
    model: Qwen2_5_VLForConditionalGeneration, input_ids: Tensor, is_video: Tensor, features: Sequence[Tensor]
) -> Tensor:
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
    return embeds.masked_scatter(is_video.unsqueeze(-1), flat)
