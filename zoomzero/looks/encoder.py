"""From looks to prompts: frames read once, features of a frozen vision tower computed once.

A video that cannot be read becomes the `VideoError` of every look at it, for the caller to skip; the looks beside it
do not suffer.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.inputs import Shown, VideoInputs
from zoomzero.looks import Context, Look, PreparedPrompt
from zoomzero.looks.byte_bounded import ByteBoundedCache
from zoomzero.looks.parallel_reads import ParallelReads
from zoomzero.looks.videos import VideoSource
from zoomzero.models import mrope_positions
from zoomzero.models.encoding import PATCHES_PER_RUN, PlacedVideo, video_features
from zoomzero.patches import VideoPatches
from zoomzero.video import VideoError
from zoomzero_kernels import token_resample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bound in bytes of the prompts' ids and positions (a few kilobytes each).
MAX_TEXTS = 1 << 26


@dataclass(frozen=True)
class Frames:
    """The visual part of a prompt."""

    visual: Tensor
    """Pixels [patches, C] or features [tokens, D]."""
    grid_thw: Tensor
    """int64 [1, 3], in patches."""
    second_per_grid_ts: Tensor
    """float32 [1], seconds from one temporal patch to the next."""
    times: tuple[float, ...]
    """Seconds of the temporal patches."""


class PromptEncoder:
    """Turns looks into prompts with the processor; the vision tower runs here only if it is frozen.

    Args:
        processor: chooses frames and writes prompts.
        model: its positions and (frozen) vision tower are used.
        videos: where looks find their videos, and frames that were read before their turn.
        freeze_vision: cache features rather than pixels.
        feature_bytes: bound of that cache.
        num_decoders: looks whose frames are read side by side, in threads; 1 reads one after the other.
    """

    def __init__(
        self,
        processor: VideoInputs,
        model: PreTrainedModel,
        videos: VideoSource,
        *,
        freeze_vision: bool,
        feature_bytes: int,
        num_decoders: int = 1,
    ) -> None:
        self.processor = processor
        self.model = model
        self.videos = videos
        self.freeze_vision = freeze_vision
        # Seconds spent on reading frames, or on waiting for them, so far: for those who tell reading from encoding.
        self.read_seconds = 0.0
        self._frames: ByteBoundedCache[Frames] = ByteBoundedCache(feature_bytes, lambda item: item.visual.nbytes)
        self._reads = ParallelReads(processor.read, num_decoders)
        self._texts: ByteBoundedCache[tuple[Tensor, Tensor]] = ByteBoundedCache(
            MAX_TEXTS, lambda pair: pair[0].nbytes + pair[1].nbytes
        )

    def prepare(self, looks: Sequence[Look]) -> list[PreparedPrompt | VideoError]:
        """Prompts of the looks, in order; frames that no cache holds are decoded and, if frozen, encoded in one batch.

        A look whose frames cannot be read comes out as its error.
        """
        contexts = {id(look): look.context for look in looks if look.context is not None}
        earlier = iter(self._visual_parts([context.look for context in contexts.values()]))
        kept = {place: (context, next(earlier)) for place, context in contexts.items()}
        prepared: list[PreparedPrompt | VideoError] = []
        for look, part in zip(looks, self._visual_parts(looks), strict=True):
            context, before = kept.get(id(look), (None, None))
            if isinstance(part, VideoError) or isinstance(before, VideoError):
                prepared.append(part if isinstance(part, VideoError) else before)  # type: ignore[arg-type]
                continue
            parts = [part] if context is None or before is None else [self._averaged(before, context), part]
            input_ids, position_ids = self._text(look, parts)
            visual, grids = ([getattr(item, name) for item in parts] for name in ("visual", "grid_thw"))
            videos = tuple(
                PlacedVideo(tuple(item.grid_thw[0].tolist()), float(item.second_per_grid_ts), item.times)
                for item in parts
            )
            prepared.append(
                PreparedPrompt(
                    input_ids, position_ids, _joined(visual), _joined(grids), self.freeze_vision, videos=videos
                )
            )
        return prepared

    def expect(self, looks: Iterable[Look]) -> None:
        """Start reading the frames of the first few of the looks, whose turn comes after other work."""
        for look in looks:
            if not self._reads.has_room:
                return
            if look.frames_key not in self._frames and look.frames_key not in self._reads:
                self._start_reading(look)

    def _start_reading(self, look: Look) -> None:
        try:
            patches = self.videos.take_patches(look.frames_key)
            if patches is not None:
                self._reads.keep(look.frames_key, patches)
            elif (video := self.videos.get(look.video)).backend != "dali":
                self._reads.submit(look.frames_key, video, look.plan)
        except VideoError:
            # Its turn comes, and the error with it.
            return

    def forget(self) -> None:
        """Drop all features and texts: for a model whose weights may change before the next look."""
        self._frames.clear()
        self._texts.clear()

    def close(self) -> None:
        """End the threads that read; a later look starts them anew."""
        self._reads.close()

    def _visual_parts(self, looks: Sequence[Look]) -> list[Frames | VideoError]:
        found: dict[Hashable, Frames | VideoError] = {}
        missing: dict[Hashable, Look] = {}
        for look in looks:
            part = self._frames.get(look.frames_key)
            if part is None:
                missing[look.frames_key] = look
            else:
                found[look.frames_key] = part
        waiting: dict[Hashable, VideoPatches] = {}
        later = iter(missing.values())
        for key, look in missing.items():
            self.expect(later)
            try:
                waiting[key] = self._read(key, look)
            except VideoError as error:
                self.videos.give_up(look.video, error)
                found[key] = error
                continue
            if sum(len(patches.pixel_values_videos) for patches in waiting.values()) >= PATCHES_PER_RUN:
                found |= self._encoded(waiting)
                waiting = {}
        found |= self._encoded(waiting)
        return [found[look.frames_key] for look in looks]

    def _read(self, key: Hashable, look: Look) -> VideoPatches:
        started = time.perf_counter()
        try:
            patches = self._reads.take(key) or self.videos.take_patches(key)
            return patches or self.processor.read(self.videos.get(look.video), look.plan)
        finally:
            self.read_seconds += time.perf_counter() - started

    def _encoded(self, waiting: Mapping[Hashable, VideoPatches]) -> dict[Hashable, Frames]:
        """One run of the (frozen) vision tower, into the cache."""
        parts: dict[Hashable, Frames] = {}
        if waiting:
            for (key, item), visual in zip(waiting.items(), self._towered(list(waiting.values())), strict=True):
                parts[key] = Frames(visual, item.video_grid_thw, item.second_per_grid_ts, item.times)
                self._frames.put(key, parts[key])
        return parts

    def _towered(self, read: Sequence[VideoPatches]) -> list[Tensor]:
        if not self.freeze_vision:
            return [item.pixel_values_videos for item in read]
        with torch.no_grad():
            features = video_features(self.model, [(item.pixel_values_videos, item.video_grid_thw) for item in read])
        # Views of one batch would keep the whole batch alive in the cache.
        return [feature.clone() for feature in features]

    def _averaged(self, frames: Frames, context: Context) -> Frames:
        """At most `max_tokens` features of an earlier look: averaged in space, and where that is not enough in time."""
        if not self.freeze_vision:
            raise ValueError(
                "PromptEncoder: context needs features of a frozen vision tower, got pixels; set freeze_vision"
            )
        merge = self.processor.geometry.merge_size
        steps, rows, columns = (int(side) for side in frames.grid_thw[0])
        rows, columns = rows // merge, columns // merge
        kept, (height, width) = context_grid((steps, rows, columns), context.max_tokens)
        grid = torch.tensor([[steps, rows, columns]])
        tokens = token_resample(frames.visual, grid, torch.tensor([[height, width]]).expand(steps, -1).contiguous())
        # Time is one more axis to average over: each slice's cells lie beside each other in its row.
        cells = height * width
        averaged = token_resample(
            tokens.reshape(steps * cells, -1), torch.tensor([[1, steps, cells]]), torch.tensor([[kept, cells]])
        )
        edges = [index * steps / kept for index in range(kept + 1)]
        times = tuple(
            sum(frames.times[math.floor(start) : math.ceil(end)]) / (math.ceil(end) - math.floor(start))
            for start, end in itertools.pairwise(edges)
        )
        grid_thw = torch.tensor([[kept, height * merge, width * merge]])
        return Frames(averaged, grid_thw, frames.second_per_grid_ts * (steps / kept), times)

    def _text(self, look: Look, parts: Sequence[Frames]) -> tuple[Tensor, Tensor]:
        """Token ids and positions, on the model's device."""
        shapes = tuple((*part.grid_thw[0].tolist(), float(part.second_per_grid_ts)) for part in parts)
        # Times are written in the text where the family says them there.
        times = tuple(part.times for part in parts) if self.processor.geometry.times_in_prompt else ()
        key = (look.inquiry, look.zoomed, shapes, times)
        pair = self._texts.get(key)
        if pair is None:
            merged = self.processor.geometry.merge_size**2
            shown = [Shown(int(part.grid_thw.prod()) // merged, part.times) for part in parts]
            inputs = self.processor.text_inputs(look.inquiry, shown, zoomed=look.zoomed)
            inputs["video_grid_thw"] = _joined([part.grid_thw for part in parts])
            if not self.processor.geometry.times_in_prompt:
                inputs["second_per_grid_ts"] = _joined([part.second_per_grid_ts for part in parts])
            device = self.model.device
            pair = (inputs["input_ids"][0].to(device), mrope_positions(self.model.config, inputs)[0].to(device))
            self._texts.put(key, pair)
        return pair


def context_grid(grid: tuple[int, int, int], max_tokens: int) -> tuple[int, tuple[int, int]]:
    """How many slices, and how many (rows, columns) per slice, are left of a grid [t, h, w] under a number of tokens.

    Space goes first, at most to one token per slice; then time.
    """
    steps, rows, columns = grid
    if max_tokens < 1:
        raise ValueError(f"context_grid: max_tokens must be at least 1, got {max_tokens}; leave the context out")
    per_slice = max(1, max_tokens // steps)
    shrink = min(1.0, math.sqrt(per_slice / (rows * columns)))
    height = max(1, min(math.floor(rows * shrink), per_slice))
    width = min(math.ceil(columns * shrink), per_slice // height)
    return min(steps, max(1, max_tokens // (height * width))), (height, width)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
