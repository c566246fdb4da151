"""A video decoded whole: small clips that are looked at many times are read once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from zoomzero.video.base import Indices, Video


class DecodedVideo(Video):
    """A video whose frames all lie in memory; gives the same frames as the file it was read from."""

    backend = "memory"

    def __init__(self, source: Video) -> None:
        super().__init__(source.path, source.table, source.codec, source.fps, (source.height, source.width))
        frames, self._starts = source.frames_at(source.timestamps)
        self._frames = frames.cpu()

    @property
    def num_bytes(self) -> int:
        return self._frames.numel()

    def _read(self, indices: Indices) -> Iterator[tuple[float, torch.Tensor]]:
        for index in indices:
            yield float(self._starts[index]), self._frames[index]

    def _release(self) -> None:
        self._frames = self._frames[:0]
