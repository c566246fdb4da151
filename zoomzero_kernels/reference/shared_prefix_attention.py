"""Truth of the attention of packed rows, by a dense mask."""

from collections.abc import Sequence

import torch
from torch import Tensor


def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[Sequence[int]],
    *,
    scale: float | None = None,
) -> Tensor:
    """softmax(query @ key^T * scale + mask) @ value, where place i sees place j if j <= i and j is in the prefix or in
    the branch of i; 0 for places of padding.

    query [P, H, L, D]; key, value [P, Hkv, L, D], repeated to H heads here. Equivalent torch:
    ``scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=True)``. Gradients by autograd;
    holds [P, H, L, L].
    """
    length = query.shape[2]
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    segments = torch.full((query.shape[0], length), -1, device=query.device)  # 0 prefix, g + 1 branch g, -1 padding
    for row, (prefix, branches) in enumerate(zip(prefix_lengths, branch_lengths, strict=True)):
        places = [segment for segment, count in enumerate([prefix, *branches]) for _ in range(count)]
        segments[row, : len(places)] = torch.tensor(places, dtype=torch.long, device=query.device)
    real = segments >= 0
    of_key, of_query = segments[:, None, :], segments[:, :, None]
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    visible = visible & ((of_key == 0) | (of_key == of_query)) & real[:, :, None]
    query, key, value = (tensor.where(real[:, None, :, None], 0.0) for tensor in (query, key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return weights.where(real[:, None, :, None], 0.0) @ value
