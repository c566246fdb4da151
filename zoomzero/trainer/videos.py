"""Open videos of the current batch: small ones decoded once into memory, large ones kept open.

A training step looks at one video many times: coarse, then once for every distinct span set that its rollouts
predict. A small clip is therefore decoded whole, once; a long video would not fit, so its file stays open and each
zoom seeks.
"""

from collections.abc import Iterator

import torch

from zoomzero.trainer.cache import ByteBoundedCache
from zoomzero.video import Video, open_video
from zoomzero.video.base import Indices

# A video may take this share of the cache when decoded whole, so that a batch of them fits.
LARGEST_SHARE = 1 / 16
# What an open file stands for in the bound: decoder buffers of a few frames.
OPEN_FILE_BYTES = 16 << 20


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


class VideoStore:
    """Videos by path, at most `max_bytes` of decoded frames."""

    def __init__(self, max_bytes: int) -> None:
        self._largest = int(max_bytes * LARGEST_SHARE)
        self._videos: ByteBoundedCache[Video] = ByteBoundedCache(max_bytes, _num_bytes, dropped=Video.close)

    def __len__(self) -> int:
        return len(self._videos)

    def get(self, path: str) -> Video:
        """The open video; VideoError if it cannot be read."""
        video = self._videos.get(path)
        if video is None:
            video = open_video(path)
            if video.num_frames * video.height * video.width * 3 <= self._largest:
                with video as file:
                    video = DecodedVideo(file)
            self._videos.put(path, video)
        return video


def _num_bytes(video: Video) -> int:
    return video.num_bytes if isinstance(video, DecodedVideo) else OPEN_FILE_BYTES
