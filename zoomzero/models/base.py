"""What distinguishes one model family from another, and what a vision tower takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# CLIP's pixel statistics, which the processors of Qwen2-VL and Qwen2.5-VL use, and those of Qwen3-VL; a checkpoint's
# own file takes precedence.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALVES = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class VisionGeometry:
    """What a vision tower takes, and where its prompts say when a frame was seen."""

    patch_size: int = 14
    """Pixels per patch side."""
    merge_size: int = 2
    """Patches per token side."""
    temporal_patch_size: int = 2
    """Frames per temporal patch."""
    mean: tuple[float, ...] = CLIP_MEAN
    """Mean of the pixels, per channel, of values in [0, 1]."""
    std: tuple[float, ...] = CLIP_STD
    """Standard deviation of the pixels, per channel."""
    times_in_prompt: bool = False
    """The prompt names the time of each temporal patch (Qwen3-VL) instead of the positions (Qwen2.5-VL)."""


@dataclass(frozen=True)
class Family:
    """A model family: what distinguishes it from the others."""

    model_type: str
    """As the checkpoint's config names it."""
    class_name: str
    """The model's class in transformers."""
    processor_name: str
    """The processor's class in transformers."""
    video_processor_name: str
    """The class of the processor's video part in transformers."""
    mean: tuple[float, ...]
    """Mean of the pixels, where the checkpoint has no processor file."""
    std: tuple[float, ...]
    """Standard deviation of the pixels, where the checkpoint has no processor file."""
    times_in_prompt: bool = False
    """Each temporal patch is a vision block of its own behind a time label in the text."""
    seconds_in_positions: bool = False
    """Temporal positions count time (seconds times tokens per second) instead of temporal patches."""

    def model_class(self) -> type[PreTrainedModel]:
        """The model's class in transformers."""
        import transformers

        loaded: type[PreTrainedModel] = getattr(transformers, self.class_name)
        return loaded

    def geometry(
        self, config: PretrainedConfig, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> VisionGeometry:
        """The geometry of a checkpoint of this family; statistics: its own pixel mean and standard deviation."""
        mean, std = statistics or (self.mean, self.std)
        vision = config.vision_config
        return VisionGeometry(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std, self.times_in_prompt
        )
