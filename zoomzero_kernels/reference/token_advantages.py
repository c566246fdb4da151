"""Plain-torch truth of token_advantages: loops over groups, one line a formula."""

from __future__ import annotations

import torch
from torch import Tensor


def _standardise(values: Tensor, eps: float, group_size: int) -> Tensor:
    """(x - mean) / (unbiased std + eps) of the values; a group of one response keeps mean 0 and std 1."""
    if group_size == 1:
        return values / (1 + eps)
    if values.numel() < 2 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.std() + eps)


def token_advantages(
    rewards: Tensor,
    segments: Tensor,
    credit: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    *,
    normalize: str = "tokens",
    eps: float = 1e-6,
    unscored: str = "error",
) -> Tensor:
    """Advantage of every token, float32 [B, T], 0 where mask is False.

    With the token reward ``x[b, t] = sum_r credit[r, segments[b, t]] * rewards[b, r]``:

    - ``tokens``: ``(x - mean) / (std + eps)`` over all valid tokens of the group;
    - ``segments``: the same for each segment over the responses of the group, ``x[b, s]`` counted once a response;
    - ``rewards``: each column of rewards standardised over the responses of the group, then credited;
    - ``sequence``: ``sum_r max_s(credit[r, s]) * rewards[b, r]`` standardised over the responses of the group;
    - ``none``: ``x`` itself.

    With ``unscored="skip"`` a response with a NaN reward is left out of its group and its advantages are 0.

    rewards [B, R], segments uint8 [B, T], credit [R, S], group_ids int64 [B], mask bool [B, T].
    """
    rewards64, credit64 = rewards.double(), credit.double()
    valid, index = mask.bool(), segments.long()
    advantages = torch.zeros(mask.shape, dtype=torch.float64, device=rewards.device)
    for group in group_ids.unique():
        members = (group_ids == group).nonzero().squeeze(-1)
        if unscored == "skip":
            members = members[~rewards64[members].isnan().any(dim=1)]
        scores, size = rewards64[members], len(members)
        if normalize == "rewards":
            columns = [_standardise(scores[:, r], eps, size) for r in range(scores.shape[1])]
            scores = torch.stack(columns, dim=1) if columns else scores
        by_segment = scores @ credit64
        if normalize == "segments":
            columns = [_standardise(by_segment[:, s], eps, size) for s in range(by_segment.shape[1])]
            by_segment = torch.stack(columns, dim=1)
        if normalize == "sequence":
            total = _standardise(scores @ credit64.amax(dim=1), eps, size)
            by_segment = total.unsqueeze(1).expand(-1, credit64.shape[1])
        safe = torch.where(valid[members], index[members], 0)
        tokens = by_segment.gather(1, safe)
        if normalize == "tokens":
            chosen = tokens[valid[members]]
            tokens = torch.zeros_like(tokens)
            tokens[valid[members]] = _standardise(chosen, eps, size)
        advantages[members] = torch.where(valid[members], tokens, 0.0)
    return advantages.float()
