"""A vision tower's attention in one call instead of one per frame or window."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from zoomzero.models.families import require_supported
from zoomzero.models.segments import Segments, segments_of, segments_of_run
from zoomzero_kernels.attention.flash import ragged_flash_takes

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch 2.9
    varlen_attn = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Note [Vision attention in one call]
# transformers' vision attention loops over the segments of cu_seqlens (one per frame or window) and calls the attention
# function for each: 32 calls per layer for a 64-frame clip. Only implementations whose name contains "flash" are handed
# all segments at once, with cu_seqlens. An attention function registered under such a name, and set for the vision
# sub-config alone, therefore sees the whole batch. On CUDA torch's ragged flash attention takes it as it is; elsewhere,
# and in float32, equal segments run as one batched SDPA call. Both give the loop's numbers.
#
# Note [Segments known on the host]
# The lengths of segments decide shapes, so they must be numbers on the host. `segment_arguments` computes them from the
# grids once per run of the tower and hands them down to every layer, as all arguments that a tower does not know, so
# that no layer waits for the device.
SEGMENT_ATTENTION = "zoomzero_segment_flash"
_VARLEN_SCALES = varlen_attn is not None and "scale" in inspect.signature(varlen_attn).parameters


def segment_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **options: Any,
) -> tuple[Tensor, None]:
    """Full attention inside each segment of a flat sequence.

    query, key, value: [1, heads, S, head_dim]; cu_seq_lens_q: int32 [segments + 1], its last entry is S. Of the options
    dropout is read, and host_segments, see Note [Segments known on the host], without which the host asks the device.
    Returns [1, S, heads, head_dim] and None (no weights), as transformers' attention interface asks. See Note [Vision
    attention in one call].
    """
    dropout: float = options.get("dropout", 0.0)
    known: dict[int, Segments] = options.get("host_segments") or {}
    segments = known.get(cu_seq_lens_q.numel() - 1)
    if segments is None:
        segments = segments_of(cu_seq_lens_q.diff().tolist(), query.device)
    if _varlen_takes(query, dropout):
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        longest = segments.longest
        out = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, longest, longest, scale=scaling)
        return out.unsqueeze(0), None  # type: ignore[union-attr]
    if not segments.are_equal:
        query, key, value = (tensor[:, :, segments.gather] for tensor in (query, key, value))
    sizes = [count * length for count, length in segments.runs]
    outputs = []
    for (count, _), *parts in zip(
        segments.runs, *(tensor[0].split(sizes, dim=1) for tensor in (query, key, value)), strict=True
    ):
        # [count, heads, length, head_dim]
        q, k, v = (part.unflatten(1, (count, -1)).transpose(0, 1) for part in parts)
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(outputs)
    return (joined if segments.are_equal else joined[segments.scatter]).unsqueeze(0), None


def _varlen_takes(query: Tensor, dropout: float) -> bool:
    """Whether torch's ragged attention computes it: CUDA, half precision, a torch in which it takes a scale."""
    return _VARLEN_SCALES and not dropout and query.is_cuda and ragged_flash_takes(query)


AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)


def use_segment_attention(model: PreTrainedModel) -> None:
    """Make the model's vision tower run segments in one call; the language model keeps its implementation.

    Raises TypeError for a model of none of the families.
    """
    require_supported(model)
    current = model.config._attn_implementation
    model.set_attn_implementation({"": current, "text_config": current, "vision_config": SEGMENT_ATTENTION})


def segment_arguments(tower: PreTrainedModel, grids: Tensor) -> dict[str, Any]:
    """Further arguments for a run of the tower. See Note [Segments known on the host].

    grids: int64 [n, 3] in patches, on the host.
    """
    if tower.config._attn_implementation != SEGMENT_ATTENTION:
        return {}
    return {"host_segments": segments_of_run(tower.config, grids, tower.device)}
