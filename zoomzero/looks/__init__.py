"""Looks at videos: which frames of which video go before the model with which question, read once and cached.

One road for answering, training and the tiny model's own training: a `Look` says what is to be seen and asked,
`zoomzero.looks.encoder.PromptEncoder` turns looks into `PreparedPrompt`s, and `through_tower` those into what a forward
takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from zoomzero.budget import FramePlan
from zoomzero.models.encoding import EncodedPrompt, PlacedVideo, video_features
from zoomzero.prompts import Inquiry
from zoomzero.video import Video

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Context:
    """Visual tokens of an earlier look, averaged down and kept beside those of another; never encoded again."""

    look: Look
    """The earlier look."""
    max_tokens: int
    """Most visual tokens to keep of it."""


@dataclass(frozen=True)
class Look:
    """One look of the model at a video: which frames, and which prompt around them."""

    video: str | Video
    """Path, or an open video."""
    inquiry: Inquiry
    """What is asked."""
    plan: FramePlan
    """Which frames, and in which size."""
    zoomed: bool
    """Whether the zoom pass's prompt is written, or the coarse pass's."""
    context: Context | None = None
    """What is kept of an earlier look, before the frames."""

    @property
    def frames_key(self) -> Hashable:
        """Equal for looks at the same frames in the same size."""
        return frames_key(self.video, self.plan)


def frames_key(video: str | Video, plan: FramePlan) -> Hashable:
    """Equal for the same frames in the same size."""
    return video, plan.timestamps, plan.size, plan.sample_fps


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as token ids, positions and frames, before (pixels) or after (features) the vision tower."""

    input_ids: Tensor
    """int64 [L]."""
    position_ids: Tensor
    """int64 [3, L]."""
    visual: Tensor
    """[patches, C] pixels or [tokens, D] features."""
    grid_thw: Tensor
    """int64 [videos, 3], in patches."""
    is_encoded: bool
    """Whether `visual` holds features."""
    videos: tuple[PlacedVideo, ...] = ()
    """The prompt's videos in order, where they are known."""

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt."""
        return EncodedPrompt(self.input_ids, self.position_ids, self.visual).next_position


def through_tower(model: PreTrainedModel, prompts: Sequence[PreparedPrompt]) -> list[EncodedPrompt]:
    """Encoded prompts: features as prepared, or from `model`'s vision tower, with gradients unless disabled."""
    if all(prompt.is_encoded for prompt in prompts):
        features = [prompt.visual for prompt in prompts]
    else:
        features = video_features(model, [(prompt.visual, prompt.grid_thw) for prompt in prompts])
    return [
        EncodedPrompt(prompt.input_ids, prompt.position_ids, feature, prompt.videos)
        for prompt, feature in zip(prompts, features, strict=True)
    ]
