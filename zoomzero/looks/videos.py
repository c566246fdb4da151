"""Open videos of the current batch: small ones decoded once into memory, large ones kept open.

A training step looks at one video many times: coarse, then once for every distinct span set that its rollouts
predict. A small clip is therefore decoded whole, once; a long video would not fit, so its file stays open and each
zoom seeks.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Protocol

from zoomzero.inputs import VideoInputs
from zoomzero.limits import NUM_DECODERS
from zoomzero.looks import frames_key
from zoomzero.looks.byte_bounded import ByteBoundedCache
from zoomzero.looks.read_ahead import Read, ReadAhead, ReadVideo, Reserve
from zoomzero.patches import VideoPatches
from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.memory import DecodedVideo

# A video may take this share of the cache when decoded whole, so that a batch of them fits.
LARGEST_SHARE = 1 / 16
# What an open file stands for in the bound: decoder buffers of a few frames.
OPEN_FILE_BYTES = 16 << 20


class VideoSource(Protocol):
    """Where looks find their videos, and frames that were read before their turn."""

    def get(self, video: Any) -> Video:
        """The open video of a look; VideoError if it cannot be read."""

    def give_up(self, video: Any, error: VideoError) -> None:
        """Remember that a video cannot be read."""

    def take_patches(self, key: Hashable) -> VideoPatches | None:
        """Frames that were read before their turn, by their `frames_key`; None where they were not."""


class OpenVideos:
    """Videos that looks bring open themselves, as those that are answered about do."""

    def __init__(self) -> None:
        self._read: dict[Hashable, VideoPatches] = {}

    def get(self, video: Video) -> Video:
        """The video itself."""
        return video

    def give_up(self, video: Video, error: VideoError) -> None:
        """Nothing: whoever opened the video decides."""

    def take_patches(self, key: Hashable) -> VideoPatches | None:
        """Frames of a reading; they stay, for other questions on the video."""
        return self._read.get(key)

    def add(self, video: Video, patches: VideoPatches) -> None:
        """Frames that were read before their turn."""
        self._read[frames_key(video, patches.plan)] = patches

    def clear(self) -> None:
        """Let go of all frames."""
        self._read.clear()


class VideoStore:
    """Videos by path, at most `max_bytes` of decoded frames. A path that could not be read once is not tried again.

    time_limit: seconds after which a decoder without a sign of life is stopped, None to decode in this process.
    num_decoders: with a time limit, the processes that decode side by side.
    """

    def __init__(self, max_bytes: int, time_limit: float | None = None, num_decoders: int = NUM_DECODERS) -> None:
        self._num_decoders = num_decoders
        self._largest = int(max_bytes * LARGEST_SHARE)
        self._time_limit = time_limit
        self._videos: ByteBoundedCache[Video] = ByteBoundedCache(max_bytes, _stored_bytes, dropped=Video.close)
        self._unreadable: dict[str, VideoError] = {}

    def __len__(self) -> int:
        return len(self._videos)

    def __contains__(self, path: str) -> bool:
        return path in self._videos

    def is_given_up(self, path: str) -> bool:
        """Whether the video is known to be unreadable."""
        return path in self._unreadable

    def get(self, path: str) -> Video:
        """The open video; VideoError if it cannot be read."""
        if path in self._unreadable:
            raise VideoError(path, self._unreadable[path].reason)
        video = self._videos.get(path)
        if video is None:
            try:
                video = self.decoded(self.open(path))
            except VideoError as error:
                self.give_up(path, error)
                raise
            self._videos.put(path, video)
        return video

    def put(self, path: str, video: Video) -> None:
        """Keep a video that was read elsewhere."""
        self._videos.put(path, video)

    def give_up(self, path: str, error: VideoError) -> None:
        """Remember that a video cannot be read: a decoder that hangs would cost its time limit at every visit."""
        self._unreadable[path] = error

    def open(self, path: str) -> Video:
        """A newly opened video, which is the caller's. May be called in any thread."""
        return open_video(path, time_limit=self._time_limit, num_decoders=self._num_decoders)

    def decoded_bytes(self, video: Video) -> int:
        """Bytes that `decoded` takes: 0 for a video that stays a file."""
        num_bytes = video.num_frames * video.height * video.width * 3
        return num_bytes if num_bytes <= self._largest else 0

    def decoded(self, video: Video) -> Video:
        """The video in memory if it is small, and then closed as a file. May be called in any thread."""
        if not self.decoded_bytes(video):
            return video
        with video:
            return DecodedVideo(video)


class BatchVideos:
    """Videos of the current batch by path, and those of the next one, which background threads read.

    Args:
        processor: chooses what the coarse pass sees.
        frame_bytes, time_limit, num_decoders: as `VideoStore`; so many are read ahead at the same time.
        ahead_bytes: bound of what is read before its turn, 0 to read nothing ahead.
    """

    def __init__(
        self,
        processor: VideoInputs,
        *,
        frame_bytes: int,
        ahead_bytes: int = 0,
        time_limit: float | None = None,
        num_decoders: int = NUM_DECODERS,
    ) -> None:
        self.store = VideoStore(frame_bytes, time_limit, num_decoders)
        self.ahead = ReadAhead(ahead_bytes, num_decoders) if ahead_bytes else None
        self._processor = processor
        # Coarse frames that were read ahead, until the vision tower takes them.
        self._read: dict[Hashable, VideoPatches] = {}

    def get(self, path: str) -> Video:
        """The open video, which stays the store's; VideoError if it cannot be read."""
        if self.ahead is not None and (read := self._take(self.ahead, path)) is not None:
            self.store.put(path, read.video)
            if read.coarse is not None:
                self._read[frames_key(path, read.coarse.plan)] = read.coarse
        return self.store.get(path)

    def give_up(self, path: str, error: VideoError) -> None:
        """Do not try the video again."""
        self.store.give_up(path, error)

    def take_patches(self, key: Hashable) -> VideoPatches | None:
        """Coarse frames that were read ahead; they are the caller's from now on."""
        return self._read.pop(key, None)

    def _take(self, ahead: ReadAhead, path: str) -> ReadVideo | None:
        try:
            return ahead.take(path)
        except VideoError as error:
            self.store.give_up(path, error)
            raise

    def read_ahead(self, wants_frames: Mapping[str, bool]) -> None:
        """Start reading videos by path in the background, where wanted with what the coarse pass sees of them."""
        if self.ahead is None:
            return
        reads: list[tuple[str, Read]] = [
            (path, functools.partial(self._read_one, path, wanted))
            for path, wanted in wants_frames.items()
            if (wanted or path not in self.store) and not self.store.is_given_up(path)
        ]
        self.ahead.submit(reads)

    def _read_one(self, path: str, wants_frames: bool, reserve: Reserve) -> ReadVideo | None:
        """Runs in a background thread: touches no cache."""
        video = self.store.open(path)
        try:
            plan = self._processor.plan(video)
            num_bytes = self.store.decoded_bytes(video) + wants_frames * self._processor.patch_bytes(plan)
            if not reserve(num_bytes):
                video.close()
                return None
            video = self.store.decoded(video)
            return ReadVideo(video, self._processor.read(video, plan) if wants_frames else None)
        except BaseException:
            video.close()
            raise

    def end_batch(self, paths: Collection[str]) -> None:
        """Drop what was read ahead for a batch that is done, as far as it was not needed."""
        self._read.clear()
        if self.ahead is not None:
            self.ahead.discard(paths)

    def stop(self) -> None:
        """End the background threads; a later `read_ahead` starts them anew."""
        self._read.clear()
        if self.ahead is not None:
            self.ahead.close()


def _stored_bytes(video: Video) -> int:
    return video.num_bytes if isinstance(video, DecodedVideo) else OPEN_FILE_BYTES
