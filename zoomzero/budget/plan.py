"""What a frame plan is, the limits it keeps to, and their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The method's defaults, for `plan_frames` and for the settings of both passes alike.
SAMPLE_FPS = 2.0
MAX_FRAMES = 768
MIN_FRAME_TOKENS = 16
MAX_FRAME_TOKENS = 768
# Geometry of the vision towers of Qwen2-VL and Qwen2.5-VL.
PATCH_SIZE = 14
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2


@dataclass(frozen=True)
class FramePlan:
    """What to decode and how large to make it.

    Attributes:
        timestamps: seconds from the first frame, rising, each in [0, duration).
        size: (height, width) in pixels of every frame, multiples of patch_size * merge_size.
        num_tokens: visual tokens the plan costs.
        sample_fps: frames per second of planned time (for temporal position ids). Planned time is the spans' length for
            a zoom plan, else the video's duration.
    """

    timestamps: tuple[float, ...]
    size: tuple[int, int]
    num_tokens: int
    sample_fps: float


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to.

    Attributes:
        budget_tokens: visual tokens of the whole plan.
        max_frames: frames of the whole plan.
        min_frame_tokens: fewest cells of a frame.
        max_frame_tokens: most cells of a frame.
        cell: pixels per side of the square that one visual token covers.
        temporal_patch_size: frames that share a temporal patch.
    """

    budget_tokens: int
    max_frames: int
    min_frame_tokens: int
    max_frame_tokens: int
    cell: int
    temporal_patch_size: int

    def patches(self, num_frames: int) -> int:
        """Temporal patches that hold `num_frames` frames."""
        return -(-num_frames // self.temporal_patch_size)


def count_candidates(seconds: float, sample_fps: float) -> int:
    """floor(seconds * sample_fps), where a duration computed as frames / rate must not lose a frame to rounding."""
    return math.floor(seconds * sample_fps + 1e-9)
