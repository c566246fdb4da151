"""From a video and a question to model inputs: plan the frames, read them as patches, write the prompt around them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from zoomzero import patches
from zoomzero.budget import FramePlan, plan_frames, refit_frames
from zoomzero.models.base import Family, VisionGeometry
from zoomzero.models.families import family_of
from zoomzero.models.loading import checkpoint_file
from zoomzero.models.processor import pixel_statistics, save_processor
from zoomzero.models.qwen2_5_vl import QWEN2_5_VL
from zoomzero.models.qwen3_vl import QWEN3_VL
from zoomzero.models.tokens import VIDEO_PAD, VISION_END, VISION_START, load_tokenizer, require_video_token
from zoomzero.patches import VideoPatches
from zoomzero.prompts import Inquiry
from zoomzero.settings import SETTINGS_FILE, ZoomSettings
from zoomzero.video import Video, open_video

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the text of a prompt must know of a video in it."""

    num_tokens: int
    """Visual tokens of the video."""
    times: tuple[float, ...]
    """Seconds of its temporal patches, which share the tokens equally."""


class FramePlanner:
    """Which frames a pass sees under a visual-token budget, and those frames as patches.

    Args:
        settings: budgets and prompts of the two passes.
        geometry: patch layout of the vision tower.
        dtype: of the patches; None for bfloat16 where frames are decoded on a GPU, and float32 elsewhere.
    """

    def __init__(
        self,
        settings: ZoomSettings | None = None,
        geometry: VisionGeometry | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.settings = settings or ZoomSettings()
        self.geometry = geometry or VisionGeometry()
        self.dtype = dtype

    def plan(
        self,
        video: Video,
        spans: Sequence[tuple[float, float]] | None = None,
        *,
        zoomed: bool | None = None,
        budget_tokens: int | None = None,
        context_fraction: float | None = None,
    ) -> FramePlan:
        """The frames of a pass: coarse when spans is None, else zoomed into them.

        An empty list of spans (a response that named none) plans a zoom pass over the whole video. zoomed=False plans
        spans as the coarse pass would (a part of a long video). budget_tokens and context_fraction (share of a zoom's
        frames that is spread over the rest of the video) override the settings'.
        """
        is_zoom = spans is not None if zoomed is None else zoomed
        settings = self.settings.zoom if is_zoom else self.settings.coarse
        context = settings.context_fraction if context_fraction is None else context_fraction
        if spans is not None and not spans:
            # The whole video is planned: there is no rest of it.
            context = 0.0
        limits: dict[str, Any] = {
            "budget_tokens": settings.budget_tokens if budget_tokens is None else budget_tokens,
            "max_frames": settings.max_frames,
            "min_frame_tokens": settings.min_frame_tokens,
            "max_frame_tokens": settings.max_frame_tokens,
            "patch_size": self.geometry.patch_size,
            "merge_size": self.geometry.merge_size,
            "temporal_patch_size": self.geometry.temporal_patch_size,
        }
        plan = plan_frames(
            video.duration,
            video.height,
            video.width,
            sample_fps=settings.sample_fps,
            spans=None if spans is None else list(spans),
            context_fraction=context,
            **limits,
        )
        if settings.frame_choice == "exact":
            return plan
        # An empty list of spans plans fewer frames than max_frames; moving never adds any.
        near = video.snapped_to_keyframes(plan.timestamps, within=1 / plan.sample_fps)
        return refit_frames(plan, near.tolist(), video.height, video.width, **limits)

    def read(self, video: Video, plan: FramePlan) -> VideoPatches:
        """Read the plan's frames and turn them into patches; see `zoomzero.patches.read_patches`."""
        return patches.read_patches(video, plan, self.geometry, self.dtype)

    def patch_bytes(self, plan: FramePlan) -> int:
        """Bytes of the patches that `read` makes for the plan."""
        return patches.patch_bytes(plan, self.geometry, self.dtype)

    def seen_frames(self, read: VideoPatches) -> torch.Tensor:
        """The frames as the model sees them, uint8 [n, height, width, 3]: the patches put back."""
        return patches.seen_frames(read, self.geometry)


class VideoInputs(FramePlanner):
    """Processor for Qwen-VL checkpoints: video + question -> model inputs under a visual-token budget.

    Args:
        tokenizer: the checkpoint's tokenizer, with a chat template that takes video parts.
        settings: budgets and prompts of the two passes.
        geometry: patch layout of the vision tower.
        dtype: of the patches; None for bfloat16 where frames are decoded on a GPU, and float32 elsewhere.
        family: of the checkpoint; Qwen2.5-VL, or Qwen3-VL where the geometry has times in the prompt, unless told.

    Raises:
        ValueError: the tokenizer has no video token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: ZoomSettings | None = None,
        geometry: VisionGeometry | None = None,
        dtype: torch.dtype | None = None,
        family: Family | None = None,
    ) -> None:
        require_video_token(tokenizer)
        super().__init__(settings, geometry, dtype)
        self.tokenizer = tokenizer
        self.family = family or (QWEN3_VL if self.geometry.times_in_prompt else QWEN2_5_VL)
        self.video_token_id: int = tokenizer.get_vocab()[VIDEO_PAD]

    def __call__(
        self,
        video: Video | str | os.PathLike[str],
        question: str,
        options: Sequence[str] | None = None,
        *,
        spans: Sequence[tuple[float, float]] | None = None,
    ) -> BatchFeature:
        """Inputs of one pass, batch size 1.

        Args:
            video: an open video, or the path of one.
            question: the question's text.
            options: 2 to 8 option texts, without letters; None asks an open question.
            spans: None for the coarse pass over the whole video; for the zoom pass the spans (seconds) to look at,
                merged and inside the video.

        Returns:
            input_ids, attention_mask, mm_token_type_ids [1, L] int64 and the visual part as in `VideoPatches`: ready
            for the model's forward as keyword arguments. Qwen3-VL's have no second_per_grid_ts: times are in the text.

        Raises:
            ValueError: question, options or spans are not valid.
            VideoError: the video cannot be read.
        """
        from transformers import BatchFeature

        opened = video if isinstance(video, Video) else open_video(video)
        try:
            inquiry = Inquiry(question, None if options is None else tuple(options), opened.duration)
            read = self.read(opened, self.plan(opened, spans))
        finally:
            if opened is not video:
                opened.close()
        num_tokens = int(read.video_grid_thw.prod()) // self.geometry.merge_size**2
        inputs = self.text_inputs(inquiry, [Shown(num_tokens, read.times)], zoomed=spans is not None)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["pixel_values_videos"] = read.pixel_values_videos
        inputs["video_grid_thw"] = read.video_grid_thw
        if not self.geometry.times_in_prompt:
            inputs["second_per_grid_ts"] = read.second_per_grid_ts
        return BatchFeature(inputs)

    def text_inputs(self, inquiry: Inquiry, shown: Sequence[Shown], *, zoomed: bool) -> dict[str, torch.Tensor]:
        """input_ids and mm_token_type_ids of a prompt, int64 [1, L]; its videos stand side by side.

        Raises:
            ValueError: a text holds a special token, or the chat template takes no video.
        """
        for text in inquiry.texts:
            for token in self.tokenizer.all_special_tokens:
                if token in text:
                    raise ValueError(
                        f"question, options and subtitles must not contain the special token {token}; got {text!r:.80}"
                    )
        around = self.settings.prompts.around_video(inquiry, zoomed=zoomed)
        first, last = ([{"type": "text", "text": text}] if text else [] for text in around)
        videos = [{"type": "video"} for _ in shown]
        message: dict[str, Any] = {"role": "user", "content": [*first, *videos, *last]}
        rendered = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        parts = str(rendered).split(VIDEO_PAD)
        if len(parts) != len(shown) + 1:
            raise ValueError(
                f"the tokenizer's chat template must give one {VIDEO_PAD} per video part, got {len(parts) - 1} for "
                f"{len(shown)}; use a Qwen-VL template"
            )
        input_ids = torch.tensor([self._joined_ids(parts, shown)])
        # 2 marks video tokens for the model's M-RoPE positions.
        return {"input_ids": input_ids, "mm_token_type_ids": (input_ids == self.video_token_id).long() * 2}

    def _joined_ids(self, parts: Sequence[str], shown: Sequence[Shown]) -> list[int]:
        """Token ids of the texts with the videos' placeholders between them."""
        ids: list[int] = []
        before = parts[0]
        for video, after in zip(shown, parts[1:], strict=True):
            if not self.geometry.times_in_prompt:
                ids += [*self._ids(before), *[self.video_token_id] * video.num_tokens]
                before = after
                continue
            # As in transformers' Qwen3-VL processor, the template's own pair of vision tokens stays around all patches.
            for seconds in video.times:
                label = f"<{seconds:.1f} seconds>{VISION_START}"
                ids += [*self._ids(before + label), *[self.video_token_id] * (video.num_tokens // len(video.times))]
                before = VISION_END
            before += after
        return ids + self._ids(before)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer, transformers' processor files and zoomzero.json into a checkpoint's folder."""
        save_processor(self.family, self.tokenizer, self.geometry, folder)
        self.settings.save(folder)


def load_processor(path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> VideoInputs:
    """The processor of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint.

    Patch geometry comes from the checkpoint's config, pixel statistics from its processor files (the family's own if
    it has none), budgets and prompts from its zoomzero.json (the method's defaults if it has none).

    Args:
        path: checkpoint folder or hub name.
        dtype: of the patches; as for VideoInputs.

    Raises:
        ValueError: the checkpoint is of another family, or its chat template has no place for a video.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    family = family_of(config)
    geometry = family.geometry(config, pixel_statistics(path))
    file = checkpoint_file(path, SETTINGS_FILE)
    settings = ZoomSettings() if file is None else ZoomSettings.load(file.parent)
    return VideoInputs(load_tokenizer(path), settings, geometry, dtype, family)


def require_inputs_of(model: PreTrainedModel, processor: VideoInputs) -> None:
    """ValueError unless the processor makes what the model takes: its patch layout, and times where it expects them."""
    family = family_of(model.config)
    wanted = family.geometry(model.config, (processor.geometry.mean, processor.geometry.std))
    if processor.geometry != wanted:
        raise ValueError(
            f"zoomzero: the processor must make inputs of the model ({family.model_type}: {wanted}), got "
            f"{processor.geometry}; use load_processor with the model's own checkpoint"
        )
