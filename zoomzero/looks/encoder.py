"""From dataset rows to encoded prompts: frames decoded once, features of a frozen vision tower computed once.

A video that cannot be read becomes the `VideoError` of every look at it, for the trainer to skip; the looks beside it
do not suffer.
"""

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.budget import FramePlan
from zoomzero.inputs import EncodedVideo, VideoInputs
from zoomzero.looks.cache import ByteBoundedCache
from zoomzero.looks.read_ahead import Read, ReadAhead, ReadVideo, Reserve
from zoomzero.looks.videos import VideoStore
from zoomzero.models.encoding import EncodedPrompt, prompt_positions, video_features
from zoomzero.video import Video, VideoError

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
        return _frames_key(self.video, self.plan)


def _frames_key(path: str, plan: FramePlan) -> Hashable:
    return path, plan.timestamps, plan.size, plan.sample_fps


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

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt."""
        return EncodedPrompt(self.input_ids, self.position_ids, self.visual).next_position


@dataclass(frozen=True)
class _Frames:
    """Cached visual part: pixels or features, grid [1, 3] and seconds between temporal patches [1]."""

    visual: Tensor
    grid_thw: Tensor
    second_per_grid_ts: Tensor


class PromptEncoder:
    """Turns looks into prompts with the processor; the vision tower runs here only if it is frozen.

    processor: chooses frames and writes prompts; model: its positions and (frozen) vision tower are used;
    freeze_vision: cache features rather than pixels; feature_bytes, frame_bytes: bounds of the two caches;
    ahead_bytes: bound of what is read before its turn, 0 to read nothing ahead; time_limit: of decoding, see
    `VideoStore`.
    """

    def __init__(
        self,
        processor: VideoInputs,
        model: Qwen2_5_VLForConditionalGeneration,
        *,
        freeze_vision: bool,
        feature_bytes: int,
        frame_bytes: int,
        ahead_bytes: int = 0,
        time_limit: float | None = None,
    ) -> None:
        self.processor = processor
        self.model = model
        self.freeze_vision = freeze_vision
        self._videos = VideoStore(frame_bytes, time_limit)
        self._ahead = ReadAhead(ahead_bytes) if ahead_bytes else None
        # Coarse frames that were read ahead, until the vision tower takes them; and which frames a path's are.
        self._read: dict[Hashable, EncodedVideo] = {}
        self._coarse_keys: dict[str, Hashable] = {}
        self._frames: ByteBoundedCache[_Frames] = ByteBoundedCache(feature_bytes, lambda item: item.visual.nbytes)
        self._texts: ByteBoundedCache[tuple[Tensor, Tensor]] = ByteBoundedCache(
            MAX_TEXTS, lambda pair: pair[0].nbytes + pair[1].nbytes
        )

    def coarse_look(self, row: Mapping[str, Any]) -> Look:
        """The first pass: the whole video under the coarse budget. row: a dataset row (video, question, options)."""
        plan = self.processor.plan(self.video(row["video"]))
        self._coarse_keys[row["video"]] = _frames_key(row["video"], plan)
        return Look(row["video"], row["question"], tuple(row["options"]), plan, zoomed=False)

    def zoom_look(self, row: Mapping[str, Any], spans: Sequence[tuple[float, float]]) -> Look:
        """The zoom pass: frames inside the spans (seconds, inside the video); no span: evenly over the whole video."""
        plan = self.processor.plan(self.video(row["video"]), spans)
        return Look(row["video"], row["question"], tuple(row["options"]), plan, zoomed=True)

    def prepare(self, looks: Sequence[Look]) -> list[PreparedPrompt | VideoError]:
        """Prompts of the looks, in order; frames that no cache holds are decoded and, if frozen, encoded in one batch.

        A look whose frames cannot be read comes out as its error.
        """
        prepared: list[PreparedPrompt | VideoError] = []
        for look, part in zip(looks, self._visual_parts(looks), strict=True):
            if isinstance(part, VideoError):
                prepared.append(part)
                continue
            input_ids, position_ids = self._text(look, part)
            prepared.append(
                PreparedPrompt(input_ids, position_ids, part.visual, part.grid_thw, is_encoded=self.freeze_vision)
            )
        return prepared

    def prepare_coarse(self, rows: Sequence[Mapping[str, Any]]) -> list[PreparedPrompt | VideoError]:
        """Prompts of the rows' coarse looks, or why a row's video cannot be read."""
        looks: list[Look | VideoError] = []
        for row in rows:
            try:
                looks.append(self.coarse_look(row))
            except VideoError as error:
                looks.append(error)
        prepared = iter(self.prepare([look for look in looks if isinstance(look, Look)]))
        return [next(prepared) if isinstance(look, Look) else look for look in looks]

    # -- videos ------------------------------------------------------------------------------------------------------

    def video(self, path: str) -> Video:
        """The open video, which stays the encoder's; VideoError if it cannot be read."""
        if self._ahead is not None and (read := self._take(self._ahead, path)) is not None:
            self._videos.put(path, read.video)
            if read.coarse is not None:
                self._read[_frames_key(path, read.coarse.plan)] = read.coarse
        return self._videos.get(path)

    def _take(self, ahead: ReadAhead, path: str) -> ReadVideo | None:
        try:
            return ahead.take(path)
        except VideoError as error:
            self._videos.give_up(path, error)
            raise

    def read_ahead(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Start reading, in the background, the videos of rows whose turn comes later."""
        if self._ahead is None:
            return
        reads: list[tuple[str, Read]] = []
        for path in dict.fromkeys(row["video"] for row in rows):
            wants_frames = self._coarse_keys.get(path) not in self._frames
            if (wants_frames or path not in self._videos) and not self._videos.is_given_up(path):
                reads.append((path, functools.partial(self._read_one, path, wants_frames)))
        self._ahead.submit(reads)

    def _read_one(self, path: str, wants_frames: bool, reserve: Reserve) -> ReadVideo | None:
        """Runs in a background thread: touches no cache."""
        video = self._videos.open(path)
        try:
            plan = self.processor.plan(video)
            num_bytes = self._videos.decoded_bytes(video) + wants_frames * self.processor.patch_bytes(plan)
            if not reserve(num_bytes):
                video.close()
                return None
            video = self._videos.decoded(video)
            return ReadVideo(video, self.processor.encode(video, plan) if wants_frames else None)
        except BaseException:
            video.close()
            raise

    def end_batch(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Drop what was read ahead for a batch that is done, as far as it was not needed."""
        self._read.clear()
        if self._ahead is not None:
            self._ahead.discard({row["video"] for row in rows})

    def stop_reading_ahead(self) -> None:
        """End the background threads; a later `read_ahead` starts them anew."""
        self._read.clear()
        if self._ahead is not None:
            self._ahead.close()

    # -- frames and texts --------------------------------------------------------------------------------------------

    def _visual_parts(self, looks: Sequence[Look]) -> list[_Frames | VideoError]:
        found: dict[Hashable, _Frames | VideoError] = {}
        missing: dict[Hashable, Look] = {}
        for look in looks:
            part = self._frames.get(look.frames_key)
            if part is None:
                missing[look.frames_key] = look
            else:
                found[look.frames_key] = part
        waiting: dict[Hashable, EncodedVideo] = {}
        for key, look in missing.items():
            try:
                read = self._read.pop(key) if key in self._read else None
                waiting[key] = read or self.processor.encode(self.video(look.video), look.plan)
            except VideoError as error:
                self._videos.give_up(look.video, error)
                found[key] = error
                continue
            if sum(len(encoded.pixel_values_videos) for encoded in waiting.values()) >= PATCHES_PER_RUN:
                found |= self._encoded(waiting)
                waiting = {}
        found |= self._encoded(waiting)
        return [found[look.frames_key] for look in looks]

    def _encoded(self, waiting: Mapping[Hashable, EncodedVideo]) -> dict[Hashable, _Frames]:
        """One run of the (frozen) vision tower, into the cache."""
        parts: dict[Hashable, _Frames] = {}
        if waiting:
            for (key, item), visual in zip(waiting.items(), self._towered(list(waiting.values())), strict=True):
                parts[key] = _Frames(visual, item.video_grid_thw, item.second_per_grid_ts)
                self._frames.put(key, parts[key])
        return parts

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
