"""Open videos of the current batch: small ones decoded once into memory, large ones kept open.

A training step looks at one video many times: coarse, then once for every distinct span set that its rollouts
predict. A small clip is therefore decoded whole, once; a long video would not fit, so its file stays open and each
zoom seeks.
"""

from zoomzero.looks.cache import ByteBoundedCache
from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.memory import DecodedVideo

# A video may take this share of the cache when decoded whole, so that a batch of them fits.
LARGEST_SHARE = 1 / 16
# What an open file stands for in the bound: decoder buffers of a few frames.
OPEN_FILE_BYTES = 16 << 20


class VideoStore:
    """Videos by path, at most `max_bytes` of decoded frames. A path that could not be read once is not tried again.

    time_limit: seconds after which a decoder without a sign of life is stopped, None to decode in this process.
    """

    def __init__(self, max_bytes: int, time_limit: float | None = None) -> None:
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
        return open_video(path, time_limit=self._time_limit)

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


def _stored_bytes(video: Video) -> int:
    return video.num_bytes if isinstance(video, DecodedVideo) else OPEN_FILE_BYTES
