"""Truth of the attention of packed rows, by a dense mask."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor


def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_lengths: Sequence[int],
    branch_lengths: Sequence[Sequence[int]],
    *,
    groups_per_row: Sequence[int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(query @ key^T * scale + mask) @ value, where place i sees place j if j <= i, both are of
    one group, and j is in the prefix or in the branch of i; 0 for places of padding.

    query [P, H, L, D]; key, value [P, Hkv, L, D], repeated to H heads here. Equivalent torch:
    ``scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=True)``. Gradients by autograd;
    holds [P, H, L, L].
    """
    length = query.shape[2]
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    # By place: the number of its group, and of its part of the group, 0 for the prefix; -1 is padding.
    numbers = torch.full((query.shape[0], length, 2), -1, device=query.device)
    groups = enumerate(zip(prefix_lengths, branch_lengths, strict=True))
    for row, num_groups in enumerate(groups_per_row or [1] * query.shape[0]):
        places = [
            (group, part)
            for group, (prefix, branches) in islice(groups, num_groups)
            for part, count in enumerate([prefix, *branches])
            for _ in range(count)
        ]
        numbers[row, : len(places)] = torch.tensor(places, dtype=torch.long, device=query.device).view(-1, 2)
    group, part = numbers.unbind(-1)
    real = group >= 0
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() & real[:, :, None]
    visible = visible & (group[:, :, None] == group[:, None, :])
    visible = visible & ((part[:, None, :] == 0) | (part[:, :, None] == part[:, None, :]))
    query, key, value = (tensor.where(real[:, None, :, None], 0.0) for tensor in (query, key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    return weights.where(real[:, None, :, None], 0.0) @ value
