"""A vision tower's attention in one call instead of one per frame or window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from zoomzero.models.families import require_supported

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Note [Vision attention in one call]
# transformers' vision attention loops over the segments of cu_seqlens (one per frame or window) and calls the attention
# function for each: 32 calls per layer for a 64-frame clip. Only implementations whose name contains "flash" are handed
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


def use_segment_attention(model: PreTrainedModel) -> None:
    """Make the model's vision tower run segments in batched SDPA calls; the language model keeps its implementation.

    Raises TypeError for a model of none of the families.
    """
    require_supported(model)
    current = model.config._attn_implementation
    model.set_attn_implementation({"": current, "text_config": current, "vision_config": SEGMENT_ATTENTION})
