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
Where the clock restarts (Note [Joined recordings] in packets) times do not tell places apart, so a jump reads packets
from the file's start without decoding them.

Note [Frames that do not decode]
Damaged packets are passed over, as players do. A frame that does not come out is replaced by the one before it if that
is not older than MAX_STALE_SECONDS; else it is given as missing, and `Video` decides what stands in for it.

Note [Fork]
A forked child has neither the decoder's threads nor a file position of its own. It opens the file again, and never
frees what it inherited: freeing waits for threads that are not there.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import replace

import av
import numpy as np
import numpy.typing as npt

from zoomzero.video.base import MAX_STALE_SECONDS, Indices, Video
from zoomzero.video.errors import READ_ERRORS, VideoError
from zoomzero.video.keyframes import KeyTest
from zoomzero.video.packets import JoinedClock, Joints, Progress, no_progress, read_packets
from zoomzero.video.picture import Picture
from zoomzero.video.source import (
    FileState,
    OpenOptions,
    Source,
    check_source,
    open_container,
    source_name,
    video_stream,
)
from zoomzero.video.table import FrameTable, PacketList, average_fps, decode_table, read_table, scan

log = logging.getLogger(__name__)

SEEK_COST_FRAMES = 12
BACK_OFF_SECONDS = (0, 1, 4, 16)

DROPPABLE_CODECS = ("h264", "hevc")
# Of joined recordings, so many beginnings are tried for frames that cannot be decoded.
MOST_TRIED_PARTS = 16

# A decoded frame with its presentation time in units of the stream's time base.
Timed = tuple[int, av.VideoFrame]


class PyAVVideo(Video):
    """Video read with PyAV. See `Video` for the interface.

    progress: called whenever a packet was read or decoded, for whoever watches that the decoder lives.
    """

    backend = "pyav"

    def __init__(self, source: Source, options: OpenOptions, progress: Progress = no_progress) -> None:
        self._source = source
        self._options = options
        self._progress = progress
        self._owner = os.getpid()
        self._current: Timed | None = None
        self._ahead: Timed | None = None
        self._frames: Iterator[Timed] = iter(())
        self._prepared: Indices | None = None
        self._wanted: frozenset[int] | None = None
        self._dropped: set[int] = set()
        self._drain_at: int | None = None
        self._drained = False
        self._is_untimed = False
        self._joints: Joints | None = None
        self._numbered: Iterator[tuple[int, av.Packet]] = iter(())
        self._next_number = 0
        self.path = source_name(source)
        target = check_source(source)
        self._file = target if isinstance(target, str) else None
        self._state = None if self._file is None else FileState.of(self._file)
        self._container = open_container(source, options)
        try:
            self._stream = video_stream(self._container, self.path, options)
            self._is_key = KeyTest(self._stream)
            codec = self._stream.codec_context.codec.canonical_name
            self.table, first = self._read_table()
            fps = average_fps(self.table, self._stream)
            self._picture = Picture(first, self._stream.sample_aspect_ratio)
            self._check_size()
        except BaseException:
            self._container.close()
            raise
        if self.table.damage:
            log.warning("%s: %s", self.path, self.table.damage)
        self.table = replace(self.table, oddity=self.table.oddity or self._picture.oddity)
        self._droppable = codec in DROPPABLE_CODECS and not self.table.untimed
        self.orientation = self._picture.orientation
        size = self._picture.height, self._picture.width
        super().__init__(self.path, self.table, codec, fps, size, is_hdr=self._picture.is_hdr)

    # -- the table ---------------------------------------------------------------------------------------------------

    def _read_table(self) -> tuple[FrameTable, av.VideoFrame]:
        """The frames that can be decoded, and the first of them."""
        found = scan(self._container, self._stream, self._progress)
        self._has_keys = any(found.is_key)
        self._index_times = found.index_times
        table = read_table(found, self._container, self._stream, self.path)
        if table is None:
            self._reopen()
            self._is_untimed = True
            table = decode_table(self._decode(None), found, self._container, self._stream, self.path)
        self._use(table)
        first = self._first_frame()
        if not table.untimed:
            table = self._from_first_decodable(table, found)
        if table.ends_early:
            table = self._without_broken_tail(table)
        if table is not self.table or self._ahead is None or self._ahead[1] is not first:
            self._use(table)
        return table, first

    def _use(self, table: FrameTable) -> None:
        self.table = table
        self._joints = table.joints
        self._restart()

    def _first_frame(self) -> av.VideoFrame:
        ahead = self._ahead = next(self._frames, None)
        if ahead is None:
            raise VideoError(self.path, f"no frame could be decoded ({self._stream.codec_context.name})")
        return ahead[1]

    def _from_first_decodable(self, table: FrameTable, found: PacketList) -> FrameTable:
        """See Note [Frames that cannot be decoded] in table."""
        assert self._ahead is not None  # the first frame was just decoded
        firsts = {0: self._ahead[0]}
        if table.joints is not None:
            firsts = self._first_of_parts(table.joints)
        elif self._ahead[0] <= table.pts[0]:
            return table
        return read_table(found, self._container, self._stream, self.path, firsts) or table

    def _first_of_parts(self, joints: Joints) -> dict[int, int]:
        """Time of the first frame that decodes, on the container's own clock, by the number of its part."""
        keys = {number: key for key, number in joints.key_packets.items()}
        firsts = {}
        for part, offset in enumerate(joints.offsets[:MOST_TRIED_PARTS]):
            later = [number for number in keys if number >= joints.first_packets[part]]
            if offset is None or not later:
                continue
            self._seek_packet(keys[min(later)])
            if self._ahead is not None:
                firsts[part] = self._ahead[0] - offset
        return firsts

    def _without_broken_tail(self, table: FrameTable) -> FrameTable:
        """The table up to the last frame that decodes: the end of a cut file may be half a frame."""
        if table.untimed:
            return table
        self._use(table)
        self._seek(int(table.pts[-1]))
        ahead = [self._ahead] if self._ahead else []
        last = max((pts for pts, _ in itertools.chain(ahead, self._frames)), default=int(table.pts[-1]))
        return table.up_to(last)

    def _check_size(self) -> None:
        height, width = self._picture.height, self._picture.width
        if height * width > self._options.max_pixels:
            raise VideoError(
                self.path,
                f"{width} x {height} pixels as shown are more than max_pixels={self._options.max_pixels}",
            )

    # -- demuxing and decoding ---------------------------------------------------------------------------------------

    def _reopen(self) -> None:
        if self._state is not None and self._file is not None:
            self._state.check(self.path, self._file)
        self._container.close()
        self._container = open_container(self._source, self._options)
        self._stream = video_stream(self._container, self.path, self._options)
        self._next_number = 0

    def _restart(self) -> None:
        """Start over with a fresh demuxer and decoder: right for every container."""
        self._reopen()
        self._forget_position()
        self._frames = self._timed(self._decode(None))

    def _forget_position(self) -> None:
        self._current = self._ahead = None
        self._drained = False
        self._dropped.clear()

    def _decode(self, latest_start: int | None, first_packet: int = 0) -> Iterator[av.VideoFrame]:
        """Frames from the demuxer's position on, starting at a key frame.

        Args:
            latest_start: nothing comes out if the first key frame is after this time.
            first_packet: packets before this one, counted from the file's start, are passed over.
        """
        needs_key = self._has_keys
        earliest: int | None = None
        for packet, is_joint in self._moved_packets(first_packet):
            if is_joint:
                yield from self._not_before(earliest, self._decoded(None))
                self._stream.codec_context.flush_buffers()
                needs_key, earliest = True, None
            if needs_key:
                if not self._is_key(packet):
                    continue
                if latest_start is not None and packet.pts is not None and packet.pts > latest_start:
                    return
                needs_key, earliest = False, self._earliest(packet)
            latest_start = None
            if self._wanted is not None:
                self._choose_dropping(packet)
            yield from self._not_before(earliest, self._decoded(packet))
            if packet.pts is not None and packet.pts == self._drain_at:
                self._drained = True
                break
        yield from self._not_before(earliest, self._decoded(None))

    def _earliest(self, key: av.Packet) -> int | None:
        """H.264's decoder gives out leading pictures that it could not decode."""
        is_h264 = self._stream.codec_context.codec.canonical_name == "h264"
        return key.pts if is_h264 and not self._is_untimed else None

    @staticmethod
    def _not_before(earliest: int | None, frames: list[av.VideoFrame]) -> list[av.VideoFrame]:
        if earliest is None:
            return frames
        return [frame for frame in frames if frame.pts is None or frame.pts >= earliest]

    def _moved_packets(self, first_packet: int) -> Iterator[tuple[av.Packet, bool]]:
        """Packets with times that never restart, and whether the clock restarted just before."""
        if self._joints is None:
            for packet in read_packets(self._container, self._stream, self._progress):
                if self._index_times:
                    packet.pts = packet.dts = self._index_times.get(packet.pos or 0, packet.pts or 0)
                yield packet, False
            return
        # Reading goes on where the last one stopped, so that jumping ahead reads no packet twice.
        if not self._next_number:
            self._numbered = enumerate(read_packets(self._container, self._stream, self._progress))
            self._clock = JoinedClock(self._joints)
        for number, packet in self._numbered:
            self._next_number = number + 1
            is_joint = self._clock.enters_part(number) and number > first_packet
            if number >= first_packet and self._clock.move(packet):
                yield packet, is_joint

    def _choose_dropping(self, packet: av.Packet) -> None:
        """See Note [Frames nobody asked for]."""
        wanted = packet.pts is None or self._wanted is None or packet.pts in self._wanted
        self._stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"
        if not wanted and packet.pts is not None:
            self._dropped.add(packet.pts)

    def _decoded(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        self._progress()
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
        key = self.table.key_before(pts)
        if self.table.joints is not None:
            self._seek_packet(key)
            return
        self._forget_position()
        for seconds in () if self.table.untimed else BACK_OFF_SECONDS:
            try:
                self._container.seek(key - int(seconds / self.table.time_base), stream=self._stream)
            except av.FFmpegError as error:
                log.debug("%s: seek failed: %s", self.path, error)
                break
            self._frames = self._timed(self._decode(key))
            self._ahead = next(self._frames, None)
            if self._ahead is not None and self._ahead[0] <= pts:
                if self._is_key.is_checked or self._ahead[1].key_frame:
                    return
                self._distrust_flags()
                break
        self._restart()

    def _distrust_flags(self) -> None:
        """Decode from the file's start from now on: what the container calls a key frame is none."""
        log.debug("%s: key frame flags are wrong", self.path)
        self.table = replace(self.table, key_pts=self.table.key_pts[:1], oddity="key frame flags are wrong")

    def _seek_packet(self, key: int) -> None:
        """The same by the number of the key frame's packet, where times do not tell places apart."""
        assert self._joints is not None  # the callers' condition
        first_packet = self._joints.key_packets.get(key, 0)
        if first_packet < self._next_number:
            self._reopen()
        else:
            self._stream.codec_context.flush_buffers()
        self._forget_position()
        self._frames = self._timed(self._decode(None, first_packet))
        self._ahead = next(self._frames, None)

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

    # -- reading -----------------------------------------------------------------------------------------------------

    def _frame(self, index: int) -> Timed | None:
        """The decoded frame shown at table entry `index`; None where it is missing."""
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

    def _stale(self, target: int) -> Timed | None:
        """See Note [Frames that do not decode]."""
        at = self._seconds(target)
        known = self._current
        return known if known is not None and at - self._seconds(known[0]) <= MAX_STALE_SECONDS else None

    def _seconds(self, pts: int) -> float:
        return float((pts - int(self.table.pts[0])) * self.table.time_base)

    def _read(self, indices: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
        if self._owner != os.getpid():
            self._leave_to_parent()
        if self._state is not None and self._file is not None:
            self._state.check(self.path, self._file)
        if self._plan is not self._prepared:
            self._prepared = self._plan
            self._wanted = frozenset(self.table.pts[self._plan].tolist()) if self._droppable else None
        for index in indices.tolist():
            frame = self._frame(index)
            if frame is None:
                yield float(self.timestamps[index]), None
            else:
                yield self._seconds(frame[0]), self._picture.pixels(frame[1])

    def _leave_to_parent(self) -> None:
        """See Note [Fork]."""
        used = (self._container, self._stream, self._frames, self._current, self._ahead, self._picture.leave())
        for inherited in used:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        self._owner = os.getpid()
        self._container = open_container(self._source, self._options)
        self._restart()

    def read_planned(self, indices: Indices, plan: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
        """Starts and pixels [H, W, 3] of rising, distinct frames, one at a time, for the process of `guarded`."""
        self._plan = plan
        return self._read(indices)

    def _release(self) -> None:
        self._frames = iter(())
        self._current = self._ahead = None
        self._container.close()
