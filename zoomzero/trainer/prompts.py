"""From dataset rows to encoded prompts: frames decoded once, features of a frozen vision tower computed once."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.budget import FramePlan
from zoomzero.inputs import EncodedVideo, VideoInputs
from zoomzero.modeling import EncodedPrompt, prompt_positions, video_features
from zoomzero.trainer.cache import ByteBoundedCache
from zoomzero.trainer.videos import VideoStore

# Bound in bytes of the prompts' ids and positions (a few kilobytes each).
MAX_TEXTS = 1 << 26
# Patches in one run of the vision tower: a coarse look at the published budget (8192 tokens of 2x2 patches) fills it.
PATCHES_PER_RUN = 8192 * 4


@dataclass(frozen=True)
class Look:
    """One look of the model at a video: which frames, and (zoomed or not) which prompt around them."""

    video: str
    question: str
    options: tuple[str, ...]
    plan: FramePlan
    zoomed: bool

    @property
    def frames_key(self) -> Hashable:
        """Equal for looks at the same frames in the same size."""
        return self.video, self.plan.timestamps, self.plan.size, self.plan.sample_fps


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as token ids, positions and frames, before (visual = pixels) or after (features) the vision tower.

    input_ids int64 [L]; position_ids int64 [3, L]; visual [patches, C] or [tokens, D]; grid_thw int64 [1, 3].
    """

    input_ids: Tensor
    position_ids: Tensor
    visual: Tensor
    grid_thw: Tensor
    is_encoded: bool


@dataclass(frozen=True)
class _Frames:
    """Cached visual part: pixels or features, grid [1, 3] and seconds between temporal patches [1]."""

    visual: Tensor
    grid_thw: Tensor
    second_per_grid_ts: Tensor


class PromptEncoder:
    """Turns looks into prompts with the processor; the vision tower runs here only if it is frozen.

    processor: chooses frames and writes prompts; model: its positions and (frozen) vision tower are used;
    freeze_vision: cache features rather than pixels; feature_bytes, frame_bytes: bounds of the two caches.
    """

    def __init__(
        self,
        processor: VideoInputs,
        model: Qwen2_5_VLForConditionalGeneration,
        *,
        freeze_vision: bool,
        feature_bytes: int,
        frame_bytes: int,
    ) -> None:
        self.processor = processor
        self.model = model
        self.freeze_vision = freeze_vision
        self.videos = VideoStore(frame_bytes)
        self._frames: ByteBoundedCache[_Frames] = ByteBoundedCache(feature_bytes, lambda item: item.visual.nbytes)
        self._texts: ByteBoundedCache[tuple[Tensor, Tensor]] = ByteBoundedCache(
            MAX_TEXTS, lambda pair: pair[0].nbytes + pair[1].nbytes
        )

    def coarse_look(self, row: Mapping[str, Any]) -> Look:
        """The first pass: the whole video under the coarse budget. row: a dataset row (video, question, options)."""
        plan = self.processor.plan(self.videos.get(row["video"]))
        return Look(row["video"], row["question"], tuple(row["options"]), plan, zoomed=False)

    def zoom_look(self, row: Mapping[str, Any], spans: Sequence[tuple[float, float]]) -> Look:
        """The zoom pass: frames inside the spans (seconds, inside the video); no span: evenly over the whole video."""
        plan = self.processor.plan(self.videos.get(row["video"]), spans)
        return Look(row["video"], row["question"], tuple(row["options"]), plan, zoomed=True)

    def prepare(self, looks: Sequence[Look]) -> list[PreparedPrompt]:
        """Prompts of the looks, in order; frames that no cache holds are decoded and, if frozen, encoded in one
        batch.
        """
        frames = self._visual_parts(looks)
        prepared = []
        for look, part in zip(looks, frames, strict=True):
            input_ids, position_ids = self._text(look, part)
            prepared.append(
                PreparedPrompt(input_ids, position_ids, part.visual, part.grid_thw, is_encoded=self.freeze_vision)
            )
        return prepared

    def _visual_parts(self, looks: Sequence[Look]) -> list[_Frames]:
        parts = {look.frames_key: self._frames.get(look.frames_key) for look in looks}
        missing = {look.frames_key: look for look in looks if parts[look.frames_key] is None}
        waiting: dict[Hashable, EncodedVideo] = {}
        for number, (key, look) in enumerate(missing.items(), start=1):
            waiting[key] = self.processor.encode(self.videos.get(look.video), look.plan)
            num_patches = sum(len(encoded.pixel_values_videos) for encoded in waiting.values())
            if num_patches >= PATCHES_PER_RUN or number == len(missing):
                for done, visual in zip(waiting, self._towered(list(waiting.values())), strict=True):
                    encoded = waiting[done]
                    part = _Frames(visual, encoded.video_grid_thw, encoded.second_per_grid_ts)
                    self._frames.put(done, part)
                    parts[done] = part
                waiting = {}
        return [found for look in looks if (found := parts[look.frames_key]) is not None]

    def _towered(self, encoded: Sequence[EncodedVideo]) -> list[Tensor]:
        if not self.freeze_vision:
            return [item.pixel_values_videos for item in encoded]
        with torch.no_grad():
            features = video_features(self.model, [(item.pixel_values_videos, item.video_grid_thw) for item in encoded])
        # Views of one batch would keep the whole batch alive in the cache.
        return [feature.clone() for feature in features]

    def _text(self, look: Look, part: _Frames) -> tuple[Tensor, Tensor]:
        merge = self.processor.geometry.merge_size
        key = (look.question, look.options, look.zoomed, *part.grid_thw[0].tolist(), float(part.second_per_grid_ts))
        pair = self._texts.get(key)
        if pair is None:
            num_tokens = int(part.grid_thw.prod()) // merge**2
            ids = self.processor.prompt_ids(look.question, look.options, num_tokens, zoomed=look.zoomed)
            types = (ids == self.model.config.video_token_id).long() * 2
            inputs = {
                "input_ids": ids,
                "mm_token_type_ids": types,
                "video_grid_thw": part.grid_thw,
                "second_per_grid_ts": part.second_per_grid_ts,
            }
            device = self.model.device
            pair = (ids[0].to(device), prompt_positions(self.model, inputs).to(device))
            self._texts.put(key, pair)
        return pair


def through_tower(model: Qwen2_5_VLForConditionalGeneration, prompts: Sequence[PreparedPrompt]) -> list[EncodedPrompt]:
    """Encoded prompts: features as prepared, or from `model`'s vision tower, with gradients unless disabled."""
    if all(prompt.is_encoded for prompt in prompts):
        features = [prompt.visual for prompt in prompts]
    else:
        features = video_features(model, [(prompt.visual, prompt.grid_thw) for prompt in prompts])
    return [
        EncodedPrompt(prompt.input_ids, prompt.position_ids, feature)
        for prompt, feature in zip(prompts, features, strict=True)
    ]
