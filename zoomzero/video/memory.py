"""A video decoded whole: small clips that are looked at many times are read once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from zoomzero.video.base import MAX_STALE_SECONDS, Indices, Video


class DecodedVideo(Video):
    """A video whose frames all lie in memory; gives the same frames as the file it was read from.

    Frames that do not decode are missing here as there.
    """

    backend = "memory"

    def __init__(self, source: Video) -> None:
        size = source.height, source.width
        super().__init__(source.path, source.table, source.codec, source.fps, size, is_hdr=source.is_hdr)
        frames, self._starts = source.frames_at(source.timestamps)
        self._frames = frames.cpu()
        self._undecoded = set(np.flatnonzero(self._starts != self.timestamps).tolist())

    @property
    def num_bytes(self) -> int:
        return self._frames.numel()

    def _read(self, indices: Indices) -> Iterator[tuple[float, torch.Tensor | None]]:
        for index in indices.tolist():
            start = float(self._starts[index])
            is_missing = abs(start - self.timestamps[index]) > MAX_STALE_SECONDS
            yield start, None if is_missing else self._frames[index]

    def _release(self) -> None:
        self._frames = self._frames[:0]
