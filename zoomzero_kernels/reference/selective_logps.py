"""Plain-torch truth of selective_logps and linear_selective_logps."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_logps(
    logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each token: ``log_softmax(logits / temperature)[token]``; entropy ``-sum p log p``.

    logits [B, T, V], token_ids int64 [B, T] -> [B, T] (and the entropy [B, T]), in float32, or float64 for float64.
    """
    compute = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = torch.log_softmax(compute / temperature, dim=-1)
    logps = log_probs.gather(-1, token_ids.long().unsqueeze(-1)).squeeze(-1)
    if not with_entropy:
        return logps
    finite = torch.where(log_probs == -torch.inf, torch.zeros_like(log_probs), log_probs)
    return logps, -(log_probs.exp() * finite).sum(-1)


def linear_selective_logps(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``selective_logps(hidden @ weight.T + bias, token_ids)``; hidden [B, T, D], weight [V, D], bias [V]."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return selective_logps(logits, token_ids, temperature=temperature, with_entropy=with_entropy)
