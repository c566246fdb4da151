"""From a video and a question to model inputs: plan the frames, read them in chunks, resample them into patches."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoomzero.budget import FramePlan, plan_frames
from zoomzero.models.base import VisionGeometry
from zoomzero.models.families import family_of
from zoomzero.settings import ZoomSettings
from zoomzero.video import Video, VideoError, open_video
from zoomzero_kernels import frame_resample

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedTokenizerBase

VIDEO_PAD = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"

# What a chunk of full-size frames and its patches may take beside the result. On the CPU frames are decoded one by one,
# so that more would only cost memory: these are 4 frames of 720p. DALI decodes a chunk at a time: 80 of them.
CHUNK_BYTES = 16 << 20
DALI_CHUNK_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class EncodedVideo:
    """Model inputs of the visual part.

    pixel_values_videos [t*h*w, 3*tp*ps*ps], video_grid_thw int64 [1, 3] (in patches), second_per_grid_ts float32 [1]:
    seconds from one temporal patch to the next; times: for each temporal patch the mean of the times at which its first
    and its last frame start, in seconds.
    """

    pixel_values_videos: torch.Tensor
    video_grid_thw: torch.Tensor
    second_per_grid_ts: torch.Tensor
    times: tuple[float, ...]
    plan: FramePlan


class VideoInputs:
    """Processor for Qwen2.5-VL and Qwen3-VL checkpoints: video + question -> model inputs under a visual-token budget.

    Args:
        tokenizer: the checkpoint's tokenizer, with a chat template that takes video parts.
        settings: budgets and prompts of the two passes.
        geometry: patch layout of the vision tower.
        dtype: of the patches; bfloat16 halves them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: ZoomSettings | None = None,
        geometry: VisionGeometry | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings or ZoomSettings()
        self.geometry = geometry or VisionGeometry()
        self.dtype = dtype
        vocabulary = tokenizer.get_vocab()
        if VIDEO_PAD not in vocabulary:
            raise ValueError(
                f"VideoInputs: the tokenizer must have the token {VIDEO_PAD}; use a Qwen-VL checkpoint's own"
            )
        self.video_token_id: int = vocabulary[VIDEO_PAD]

    def __call__(
        self,
        video: Video | str | os.PathLike[str],
        question: str,
        options: Sequence[str],
        *,
        spans: Sequence[tuple[float, float]] | None = None,
    ) -> BatchFeature:
        """Inputs of one pass, batch size 1.

        Args:
            video: an open video, or the path of one.
            question: the question's text.
            options: 2 to 8 option texts, without letters.
            spans: None for the coarse pass over the whole video; for the zoom pass the spans (seconds) to look at,
                merged and inside the video.

        Returns:
            input_ids, attention_mask, mm_token_type_ids [1, L] int64 and the visual part as in `EncodedVideo`: ready
            for the model's forward as keyword arguments. Qwen3-VL's have no second_per_grid_ts: times are in the text.

        Raises:
            ValueError: question, options or spans are not valid.
            VideoError: the video cannot be read.
        """
        opened = video if isinstance(video, Video) else open_video(video)
        try:
            encoded = self.encode(opened, self.plan(opened, spans))
        finally:
            if opened is not video:
                opened.close()
        return self.assemble(encoded, question, options, zoomed=spans is not None)

    def plan(
        self,
        video: Video,
        spans: Sequence[tuple[float, float]] | None = None,
        *,
        budget_tokens: int | None = None,
        context_fraction: float | None = None,
    ) -> FramePlan:
        """The frames of a pass: coarse when spans is None, else zoomed into them.

        An empty list of spans (a response that named none) plans a zoom pass over the whole video. budget_tokens and
        context_fraction (share of a zoom's frames that is spread over the rest of the video) override the settings'.
        """
        settings = self.settings.coarse if spans is None else self.settings.zoom
        context = settings.context_fraction if context_fraction is None else context_fraction
        if spans is not None and not spans:
            # The whole video is planned: there is no rest of it.
            context = 0.0
        return plan_frames(
            video.duration,
            video.height,
            video.width,
            budget_tokens=budget_tokens or settings.budget_tokens,
            sample_fps=settings.sample_fps,
            spans=None if spans is None else list(spans),
            context_fraction=context,
            max_frames=settings.max_frames,
            min_frame_tokens=settings.min_frame_tokens,
            max_frame_tokens=settings.max_frame_tokens,
            patch_size=self.geometry.patch_size,
            merge_size=self.geometry.merge_size,
            temporal_patch_size=self.geometry.temporal_patch_size,
        )

    def patch_bytes(self, plan: FramePlan) -> int:
        """Bytes of the patches that `encode` makes for the plan."""
        tokens = self.geometry.merge_size**2 * plan.num_tokens
        return tokens * 3 * self.geometry.temporal_patch_size * self.geometry.patch_size**2 * self.dtype.itemsize

    def encode(self, video: Video, plan: FramePlan) -> EncodedVideo:
        """Read the plan's frames and turn them into patches, chunk by chunk into one preallocated tensor.

        The patches are on the device the back end decodes to.
        """
        geometry = self.geometry
        step = geometry.temporal_patch_size
        num_steps = -(-len(plan.timestamps) // step)
        grid_h, grid_w = (side // geometry.patch_size for side in plan.size)
        shape = num_steps * grid_h * grid_w, 3 * step * geometry.patch_size**2
        patches: torch.Tensor | None = None
        filled = 0
        starts: list[float] = []
        for frames, shown in video.stream(plan.timestamps, chunk=self._frames_per_chunk(video, plan)):
            part = frame_resample(
                frames,
                size=plan.size,
                mean=geometry.mean,
                std=geometry.std,
                patch_size=geometry.patch_size,
                merge_size=geometry.merge_size,
                temporal_patch_size=step,
                dtype=self.dtype,
            )
            starts += shown.tolist()
            patches = part.new_empty(shape) if patches is None else patches
            patches[filled : filled + len(part)] = part
            filled += len(part)
            # Not still held while the next chunk is read.
            del frames, part
        if patches is None or filled != shape[0]:
            raise VideoError(video.path, f"gave {filled} patches where the plan needs {shape[0]}")
        grid = torch.tensor([[num_steps, grid_h, grid_w]])
        starts += starts[-1:] * (num_steps * step - len(starts))
        times = tuple((starts[i] + starts[i + step - 1]) / 2 for i in range(0, len(starts), step))
        return EncodedVideo(patches, grid, torch.tensor([step / plan.sample_fps]), times, plan)

    def _frames_per_chunk(self, video: Video, plan: FramePlan) -> int:
        """Whole temporal patches of frames, at least one."""
        step = self.geometry.temporal_patch_size
        num_steps = -(-len(plan.timestamps) // step)
        step_bytes = video.height * video.width * 3 * step + self.patch_bytes(plan) // num_steps
        return max(1, (DALI_CHUNK_BYTES if video.backend == "dali" else CHUNK_BYTES) // step_bytes) * step

    def seen_frames(self, encoded: EncodedVideo) -> torch.Tensor:
        """The frames of an encoded video as the model sees them, uint8 [n, height, width, 3]: the patches put back."""
        geometry, plan = self.geometry, encoded.plan
        step, patch, merge = geometry.temporal_patch_size, geometry.patch_size, geometry.merge_size
        t, grid_h, grid_w = encoded.video_grid_thw[0].tolist()
        cells = encoded.pixel_values_videos.float().view(
            t, grid_h // merge, grid_w // merge, merge, merge, 3, step, patch, patch
        )
        # Patch order is (t, rows, columns, row in token, column in token, channel, frame, y, x).
        pixels = cells.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(t * step, *plan.size, 3)[: len(plan.timestamps)]
        mean, std = pixels.new_tensor(geometry.mean), pixels.new_tensor(geometry.std)
        return ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def assemble(self, encoded: EncodedVideo, question: str, options: Sequence[str], *, zoomed: bool) -> BatchFeature:
        """Join encoded frames with the prompt of the coarse or the zoom pass; returns as `__call__`."""
        from transformers import BatchFeature

        merged = self.geometry.merge_size**2
        num_tokens = int(encoded.video_grid_thw.prod()) // merged
        input_ids = self.prompt_ids(question, options, num_tokens, zoomed=zoomed, times=encoded.times)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            # 2 marks video tokens for the model's M-RoPE positions.
            "mm_token_type_ids": (input_ids == self.video_token_id).long() * 2,
            "pixel_values_videos": encoded.pixel_values_videos,
            "video_grid_thw": encoded.video_grid_thw,
        }
        if not self.geometry.times_in_prompt:
            inputs["second_per_grid_ts"] = encoded.second_per_grid_ts
        return BatchFeature(inputs)

    def prompt_ids(
        self,
        question: str,
        options: Sequence[str],
        num_tokens: int,
        *,
        zoomed: bool,
        times: Sequence[float] = (),
    ) -> torch.Tensor:
        """Token ids of the prompt with `num_tokens` visual placeholders, int64 [1, L].

        times: seconds of the temporal patches, which share the placeholders equally; needed where the geometry has
        times_in_prompt, else unused.
        """
        for text in (question, *options):
            for token in self.tokenizer.all_special_tokens:
                if token in text:
                    raise ValueError(
                        f"question and options must not contain the special token {token}; got {text!r:.80}"
                    )
        prompts = self.settings.prompts
        texts = prompts.zoom_text(question, options) if zoomed else prompts.coarse_text(question, options)
        first, last = ([{"type": "text", "text": text}] if text else [] for text in texts)
        message: dict[str, Any] = {"role": "user", "content": [*first, {"type": "video"}, *last]}
        rendered = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        before, placeholder, after = str(rendered).partition(VIDEO_PAD)
        if not placeholder:
            raise ValueError(
                f"the tokenizer's chat template gives no {VIDEO_PAD} for a video part; use a Qwen-VL template"
            )
        if not self.geometry.times_in_prompt:
            ids = [*self._ids(before), *[self.video_token_id] * num_tokens, *self._ids(after)]
            return torch.tensor([ids])
        # As in transformers' Qwen3-VL processor, the template's own pair of vision tokens stays around all patches.
        labels = [f"<{seconds:.1f} seconds>{VISION_START}" for seconds in times]
        ids = []
        for label in labels:
            ids += [*self._ids(before + label), *[self.video_token_id] * (num_tokens // len(times))]
            before = VISION_END
        return torch.tensor([[*ids, *self._ids(before + after)]])

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the tokenizer and zoomzero.json into a checkpoint's folder."""
        self.tokenizer.save_pretrained(folder)
        self.settings.save(folder)


def load_processor(path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> VideoInputs:
    """The processor of a Qwen2.5-VL or Qwen3-VL checkpoint on disk (or in the local hub cache).

    Patch geometry comes from the checkpoint's config, pixel statistics from its preprocessor file (the family's own if
    it has none), budgets and prompts from its zoomzero.json (the method's defaults if it has none).

    Args:
        path: the checkpoint.
        dtype: of the patches.

    Raises:
        ValueError: the checkpoint is of another family.
    """
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(path)
    family = family_of(config)
    geometry = family.geometry(config, _pixel_statistics(Path(path)))
    return VideoInputs(AutoTokenizer.from_pretrained(path), ZoomSettings.load(path), geometry, dtype)


def require_qwen2_5_inputs(processor: VideoInputs) -> None:
    """ValueError for inputs that a Qwen2.5-VL model does not take."""
    if processor.geometry.times_in_prompt:
        raise ValueError(
            "zoomzero: answering and training need the inputs of a Qwen2.5-VL checkpoint, got those of a Qwen3-VL one; "
            "use a Qwen2.5-VL checkpoint, or VideoInputs with transformers' own model"
        )


def _pixel_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation from a checkpoint's processor files, those for video first."""
    for name, part in (
        ("processor_config.json", "video_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
    ):
        file = folder / name
        if file.exists():
            data = json.loads(file.read_text(encoding="utf-8"))
            data = data if part is None else data.get(part, {})
            if "image_mean" in data and "image_std" in data:
                return tuple(data["image_mean"]), tuple(data["image_std"])
    return None
