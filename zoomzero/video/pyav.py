"""Exact frame reading on the CPU with PyAV (FFmpeg).

Note [Sequential or seek]
Frames are asked for in rising order. Between two of them the decoder either runs on or jumps to the last key frame at
or before the target. A jump never decodes a frame twice and saves every frame between the current position and that
key frame, but it empties the decoder's pipeline, which costs about as much as decoding SEEK_COST_FRAMES frames.

Note [Frames nobody asked for]
In H.264 and HEVC a frame that no other refers to need not be decoded unless it is asked for; dropping those saves about
a third of the time between samples. Which frames are asked for is known for a whole request or stream. A later request
may want a frame that was dropped while the decoder read ahead: then it seeks back.

When the next frame of the plan will be reached by a jump, the decoder is drained right after the packet of the current
one, so that it does not decode further packets just to let the frame out of its pipeline.

Note [Robust seek]
Containers disagree on what a seek means (decoding time in MPEG-TS, presentation time in Matroska, edit lists in mp4),
so a seek is only trusted when the first key frame packet after it is not later than the wanted key frame. Otherwise we
step back 1, 4, 16 seconds and at last reopen the file at its start. Packets before the first key frame are dropped.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from zoomzero.video.base import Indices, Video
from zoomzero.video.errors import READ_ERRORS, VideoError
from zoomzero.video.orientation import Orientation
from zoomzero.video.source import OpenOptions, Source, open_container, source_name, video_stream
from zoomzero.video.table import FrameTable, average_fps, decode_table, read_table

log = logging.getLogger(__name__)

SEEK_COST_FRAMES = 12
BACK_OFF_SECONDS = (0, 1, 4, 16)
# A frame that cannot be decoded is replaced by the one a player would keep showing, but not by one older than this.
MAX_STALE_SECONDS = 1.0

DROPPABLE_CODECS = ("h264", "hevc")

# A decoded frame with its presentation time in units of the stream's time base.
Timed = tuple[int, av.VideoFrame]


class PyAVVideo(Video):
    """Video read with PyAV. See `Video` for the interface."""

    backend = "pyav"

    def __init__(self, source: Source, options: OpenOptions) -> None:
        self._source = source
        self._options = options
        self._current: Timed | None = None
        self._ahead: Timed | None = None
        self._frames: Iterator[Timed] = iter(())
        self._prepared: Indices | None = None
        self._wanted: frozenset[int] | None = None
        self._dropped: set[int] = set()
        self._drain_at: int | None = None
        self._drained = False
        self.path = source_name(source)
        self._container = open_container(source, options)
        try:
            self._stream = video_stream(self._container, self.path, options)
            codec = self._stream.codec_context.codec.canonical_name
            self.table = self._read_table()
            fps = average_fps(self.table, self._stream)
            self._restart()
            first = self._first_frame()
            if self.table.damage:
                self.table = self._without_broken_tail()
                log.warning("%s: %s", self.path, self.table.damage)
                self._restart()
        except BaseException:
            self._container.close()
            raise
        self._droppable = codec in DROPPABLE_CODECS and not self.table.untimed
        self.orientation = Orientation.of(first)
        self._coded_size = first.height, first.width
        # One converter a file: a frame's own to_ndarray builds a new one, with its threads, for every frame.
        self._reformatter = VideoReformatter()
        self._warned = False
        super().__init__(self.path, self.table, codec, fps, self.orientation.shown_size(*self._coded_size))

    def _read_table(self) -> FrameTable:
        table = read_table(self._container, self._stream, self.path)
        if table is None:
            self._reopen()
            table = decode_table(self._container, self._stream, self.path)
        return table

    def _first_frame(self) -> av.VideoFrame:
        ahead = self._ahead = next(self._frames, None)
        if ahead is None:
            raise VideoError(self.path, f"no frame could be decoded ({self._stream.codec_context.name})")
        return ahead[1]

    def _without_broken_tail(self) -> FrameTable:
        """The table up to the last frame that decodes: the end of a cut file may be half a frame."""
        table = self.table
        if table.untimed:
            return table
        self._seek(int(table.pts[-1]))
        ahead = [self._ahead] if self._ahead else []
        last = max((pts for pts, _ in itertools.chain(ahead, self._frames)), default=int(table.pts[-1]))
        kept = table.pts[: int(np.searchsorted(table.pts, last, side="right"))]
        end = int(table.pts[len(kept)]) if len(kept) < len(table.pts) else table.end_pts
        return FrameTable(kept, table.key_pts, table.time_base, end, table.damage)

    # -- demuxing and decoding ---------------------------------------------------------------------------------------

    def _reopen(self) -> None:
        self._container.close()
        self._container = open_container(self._source, self._options)
        self._stream = video_stream(self._container, self.path, self._options)

    def _restart(self) -> None:
        """Start over with a fresh demuxer and decoder: right for every container."""
        self._reopen()
        self._frames = self._timed(self._decode(None))
        self._current = self._ahead = None
        self._drained = False
        self._dropped.clear()

    def _decode(self, latest_start: int | None) -> Iterator[av.VideoFrame]:
        """Frames from the demuxer's position on; nothing if decoding would start at a key frame after `latest_start`.

        Damaged packets are passed over, as players do; `_frame` notices when a frame is missing for it.
        """
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except READ_ERRORS as error:
                log.debug("%s: reading packets stopped: %s", self.path, error)
                yield from self._decoded(None)
                return
            if latest_start is not None and packet.size:
                if not packet.is_keyframe:
                    continue
                if packet.pts is not None and packet.pts > latest_start:
                    return
                latest_start = None
            if self._wanted is not None:
                self._choose_dropping(packet)
            yield from self._decoded(packet)
            if packet.pts is not None and packet.pts == self._drain_at:
                self._drained = True
                yield from self._decoded(None)
                return

    def _choose_dropping(self, packet: av.Packet) -> None:
        """See Note [Frames nobody asked for]."""
        wanted = packet.pts is None or self._wanted is None or packet.pts in self._wanted
        self._stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"
        if not wanted and packet.pts is not None:
            self._dropped.add(packet.pts)

    def _decoded(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        try:
            return list(self._stream.codec_context.decode(packet))
        except READ_ERRORS as error:
            log.debug("%s: packet at %s does not decode: %s", self.path, packet and packet.pts, error)
            return []

    def _timed(self, frames: Iterator[av.VideoFrame]) -> Iterator[Timed]:
        previous = int(self.table.pts[0]) - 1
        for count, frame in enumerate(frames):
            if self.table.untimed:
                if count == len(self.table.pts):
                    return
                previous = int(self.table.pts[count])
            else:
                previous = frame.pts if frame.pts is not None else previous + 1
            yield previous, frame

    def _seek(self, pts: int) -> None:
        """Put the decoder where it will output the frame at `pts`. See Note [Robust seek]."""
        self._current = self._ahead = None
        self._drained = False
        self._dropped.clear()
        key = self.table.key_before(pts)
        for seconds in () if self.table.untimed else BACK_OFF_SECONDS:
            try:
                self._container.seek(key - int(seconds / self.table.time_base), stream=self._stream)
            except av.FFmpegError as error:
                log.debug("%s: seek failed: %s", self.path, error)
                break
            self._frames = self._timed(self._decode(key))
            self._ahead = next(self._frames, None)
            if self._ahead is not None and self._ahead[0] <= pts:
                return
        self._restart()

    def _must_seek(self, index: int) -> bool:
        known = self._current or self._ahead
        here = 0 if known is None else self._index(known[0])
        if index < here or self._drained or int(self.table.pts[index]) in self._dropped:
            return True
        return self._pays_to_jump(here, index)

    def _pays_to_jump(self, here: int, index: int) -> bool:
        """Whether a key frame at or before `index` is far enough ahead of `here`. See Note [Sequential or seek]."""
        if self.table.untimed:
            return False
        return self._index(self.table.key_before(int(self.table.pts[index]))) - here > SEEK_COST_FRAMES

    def _index(self, pts: int) -> int:
        return int(np.searchsorted(self.table.pts, pts, side="left"))

    def _frame(self, index: int) -> Timed:
        """The decoded frame shown at table entry `index`."""
        target = int(self.table.pts[index])
        if self._current is not None and self._current[0] == target:
            return self._current
        following = self._plan[np.searchsorted(self._plan, index, side="right") :][:1]
        jumps_next = len(following) > 0 and self._pays_to_jump(index, int(following[0]))
        self._drain_at = target if jumps_next else None
        if self._must_seek(index):
            self._seek(target)
        while True:
            frame = self._ahead or next(self._frames, None)
            self._ahead = None
            if frame is None or frame[0] > target:
                self._ahead = frame
                return self._stale(target)
            self._current = frame
            if frame[0] == target:
                return frame

    def _stale(self, target: int) -> Timed:
        """The frame a player keeps showing when the one at `target` does not decode."""
        at = self._seconds(target)
        if self._current is not None and at - self._seconds(self._current[0]) <= MAX_STALE_SECONDS:
            if not self._warned:
                log.warning(
                    "%s: the frame at %.3f s does not decode; showing the one at %.3f s (said once a file)",
                    self.path,
                    at,
                    self._seconds(self._current[0]),
                )
                self._warned = True
            return self._current
        raise VideoError(
            self.path, f"the frame at {at:.3f} s cannot be decoded, nor any in the {MAX_STALE_SECONDS:g} s before it"
        )

    def _seconds(self, pts: int) -> float:
        return float((pts - int(self.table.pts[0])) * self.table.time_base)

    def _read(self, indices: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        if self._plan is not self._prepared:
            self._prepared = self._plan
            self._wanted = frozenset(self.table.pts[self._plan].tolist()) if self._droppable else None
        for index in indices.tolist():
            pts, frame = self._frame(index)
            yield self._seconds(pts), self._pixels(frame)

    def read_planned(self, indices: Indices, plan: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Starts and pixels [H, W, 3] of rising, distinct frames, one at a time, for the process of `guarded`."""
        self._plan = plan
        return self._read(indices)

    def _pixels(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        height, width = self._coded_size
        converted = self._reformatter.reformat(frame, width, height, "rgb24")
        rgb: npt.NDArray[np.uint8] = converted.to_ndarray()  # type: ignore[assignment]
        return self.orientation.pixels(rgb)

    def _release(self) -> None:
        self._frames = iter(())
        self._current = self._ahead = None
        self._container.close()
