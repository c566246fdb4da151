"""Entropy and clipping of a micro-batch by the segment of the response that a token belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoomzero.rewards import NUM_SEGMENTS
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.groups import GroupBatch
from zoomzero_kernels import GRPOLossOutput

# In the order of the segments' numbers.
SEGMENT_NAMES = ("rest", "answer", "span")
NO_SEGMENT_SUMS = [0.0] * (3 * NUM_SEGMENTS)


def segment_sums(groups: GroupBatch, output: GRPOLossOutput, config: ZoomZeroConfig) -> list[float]:
    """Tokens, entropy and clipped tokens of each segment: what processes add up before `segment_metrics`.

    A token counts as clipped where its own ratio leaves [1 - epsilon, 1 + epsilon_high] on the side of its advantage,
    which is what the loss clips at token level.
    """
    if groups.segments is None:
        return NO_SEGMENT_SUMS
    mask, advantages = groups.mask, groups.advantages
    clipped = torch.zeros_like(mask)
    if groups.old_logps is not None:
        ratio = (output.logps - groups.old_logps).exp()
        high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - config.epsilon) & (advantages < 0))
    segments = groups.segments.to(mask.device)
    places = [mask & (segments == segment) for segment in range(NUM_SEGMENTS)]
    sums = [(place.sum(), output.entropy[place].sum(), clipped[place].sum()) for place in places]
    # One transfer from the device.
    return torch.stack([value.double() for row in sums for value in row]).tolist()


def segment_metrics(sums: Sequence[float]) -> dict[str, float]:
    """Means by segment from summed `segment_sums`; segments without a token are left out."""
    figures: dict[str, float] = {}
    for place, name in enumerate(SEGMENT_NAMES):
        count, entropy, clipped = sums[3 * place : 3 * place + 3]
        if count:
            figures |= {f"entropy/{name}": entropy / count, f"clip_ratio/region_mean/{name}": clipped / count}
    return figures
