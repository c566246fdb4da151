"""A sampler whose numbers are not quite the policy's: how far it is from it, and the weights that make up for it.

An inference engine computes the policy's probabilities with kernels, and often a precision, of its own. A token that it
samples with probability q and the policy would with p counts p / q times in the loss
(https://fengyao.notion.site/off-policy-rl); the weights are bounded as TRL bounds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def importance_weights(
    policy_logps: Tensor,
    sampler_logps: Tensor,
    mask: Tensor,
    *,
    mode: str,
    clip_min: float | None = None,
    clip_max: float | None = None,
) -> Tensor:
    """Weights float32 [B, T] of sampled tokens, TRL's vllm_importance_sampling_*.

    Args:
        policy_logps, sampler_logps: [B, T], of the tokens under both; NaN of the sampler, which cannot say, weighs 1.
        mask: bool [B, T], true for a response's tokens.
        mode: "token_*" weighs each token by its own ratio, "sequence_*" by that of the whole response; "*_truncate"
            takes ratios to the bounds, "*_mask" gives those beyond them the weight 0.
        clip_min, clip_max: the bounds, None for none.

    Raises:
        ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"importance_weights: mode must be one of {', '.join(MODES)}, got {mode!r}; pick one")
    apart = torch.where(mask, policy_logps.float() - sampler_logps.float(), 0.0).nan_to_num(nan=0.0)
    if mode.startswith("sequence"):
        apart = apart.sum(-1, keepdim=True).expand_as(apart)
    ratios = apart.exp()
    low, high = -math.inf if clip_min is None else clip_min, math.inf if clip_max is None else clip_max
    if mode.endswith("truncate"):
        return ratios.clamp(low, high)
    return ratios.where((ratios >= low) & (ratios <= high), 0.0)


@dataclass(frozen=True)
class SamplingGap:
    """How far a sampler was from the policy, of one process, on the CPU."""

    apart: Tensor
    """float32 [N]: |difference| of the log-probabilities of each sampled token."""
    weights: Tensor
    """float32 [N]: its weight in the loss."""

    @staticmethod
    def of(policy_logps: Tensor, sampler_logps: Tensor, mask: Tensor, weights: Tensor) -> SamplingGap:
        """The gap of responses, all [B, T]."""
        apart = (policy_logps - sampler_logps).abs()[mask].cpu()
        return SamplingGap(apart[~apart.isnan()], weights[mask].cpu())

    @staticmethod
    def metrics(gaps: Sequence[SamplingGap]) -> dict[str, float]:
        """Figures of all processes, under TRL's names; none without a token."""
        apart, weights = (torch.cat([torch.empty(0), *(getattr(gap, name) for gap in gaps)]) for name in _FIELDS)
        if not len(apart):
            return {}
        return {
            "sampling/sampling_logp_difference/mean": float(apart.mean()),
            "sampling/sampling_logp_difference/max": float(apart.max()),
            "sampling/importance_sampling_ratio/min": float(weights.min()),
            "sampling/importance_sampling_ratio/mean": float(weights.mean()),
            "sampling/importance_sampling_ratio/max": float(weights.max()),
        }


_FIELDS = ("apart", "weights")
