"""Seeking and decoding of one stream with PyAV (FFmpeg): frames with their times, from any place on.

Note [Sequential or seek]
Frames are asked for in rising order. Between two of them the decoder either runs on or jumps to the last key frame at
or before the target. A jump never decodes a frame twice and saves every frame between the current position and that
key frame, but it empties the decoder's pipeline, which costs about as much as decoding SEEK_COST_FRAMES frames.
(Where a plan has many jumps, `segments` decodes what lies between them side by side.)

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

from zoomzero.video.appended import second_recording
from zoomzero.video.base import MAX_STALE_SECONDS, Indices
from zoomzero.video.errors import READ_ERRORS
from zoomzero.video.keyframes import KeyTest
from zoomzero.video.packets import JoinedClock, Joints, Progress, read_packets
from zoomzero.video.source import (
    FileState,
    OpenOptions,
    Source,
    alpha_decoder,
    check_source,
    open_container,
    opened_bytes,
    source_name,
    video_stream,
)
from zoomzero.video.table import FrameTable, PacketList, scan

log = logging.getLogger(__name__)

SEEK_COST_FRAMES = 12
BACK_OFF_SECONDS = (0, 1, 4, 16)

DROPPABLE_CODECS = ("h264", "hevc")

# A decoded frame with its presentation time in units of the stream's time base.
Timed = tuple[int, av.VideoFrame]


class FrameReader:
    """An opened stream and a decoder somewhere in it.

    Args:
        source: as of `open_video`.
        options: how to open and decode.
        progress: called whenever a packet was read or decoded, for whoever watches that the decoder lives.

    Attributes:
        path: what messages call the source.
        codec: its name.
        container, stream, decoder: as PyAV has them opened last.
        table: the frames, once `use` was told.
        ahead: the next frame that was decoded already, or None.
        is_key: whether decoding can start at a packet.
        is_lost: the decoder was drained, or the demuxer moved, so that the next frame needs a seek.
    """

    def __init__(self, source: Source, options: OpenOptions, progress: Progress) -> None:
        self.path = source_name(source)
        self.options = options
        self.progress = progress
        self._owner = os.getpid()
        target = check_source(source)
        self._file = target if isinstance(target, str) else None
        # Absolute, so that it is found again from another folder.
        self._source = source if self._file is None else self._file
        self._state = None if self._file is None else FileState.of(self._file)
        self.table: FrameTable
        self._has_keys = True
        self._is_untimed = False
        self._joints: Joints | None = None
        self._index_times: dict[int, int] = {}
        self._current: Timed | None = None
        self.ahead: Timed | None = None
        self._frames: Iterator[Timed] = iter(())
        self._wanted: frozenset[int] | None = None
        self._dropped: set[int] = set()
        self._drain_at: int | None = None
        self.is_lost = False
        self._numbered: Iterator[tuple[int, av.Packet]] = iter(())
        self._next_number = 0
        self.container = open_container(source, options)
        try:
            self._open_stream()
            self.is_key = KeyTest(self.stream)
            self.codec = self.stream.codec_context.codec.canonical_name
        except BaseException:
            self.container.close()
            raise

    # -- the file ----------------------------------------------------------------------------------------------------

    def scan(self) -> PacketList:
        """All packets of the freshly opened stream, without decoding."""
        found = scan(self.container, self.stream, self.progress)
        self._has_keys = any(found.is_key)
        self._index_times = found.index_times
        with opened_bytes(self._source) as file:
            found.unread_from = second_recording(file, self.container.format.name, found.last_place)
        return found

    def use(self, table: FrameTable) -> None:
        """Read the frames of a table from now on, from its start."""
        self.table = table
        self._joints = table.joints
        self.restart()

    def decode_all(self) -> Iterator[av.VideoFrame]:
        """Every frame of a stream whose packets carry no times, from the start."""
        self._reopen()
        self._is_untimed = True
        return self._decode(None)

    def check_unchanged(self) -> None:
        """VideoError where the file was replaced or written to since it was opened."""
        if self._state is not None and self._file is not None:
            self._state.check(self.path, self._file)

    def _reopen(self) -> None:
        self.check_unchanged()
        self.container.close()
        self.container = open_container(self._source, self.options)
        self._open_stream()
        self._next_number = 0

    def _open_stream(self) -> None:
        self.stream = video_stream(self.container, self.path, self.options)
        self.decoder = alpha_decoder(self.stream, self.options) or self.stream.codec_context

    def restart(self) -> None:
        """Start over with a fresh demuxer and decoder: right for every container."""
        self._reopen()
        self._forget_position()
        self._frames = self._timed(self._decode(None))

    def _forget_position(self) -> None:
        self._current = self.ahead = None
        self.is_lost = False
        self._dropped.clear()

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child, which has to leave everything to its parent. See Note [Fork]."""
        return self._owner != os.getpid()

    def leave_to_parent(self, *others: object) -> None:
        """Let go of what was inherited, `others` included, and open the file again."""
        for inherited in (self.container, self.stream, self.decoder, self._frames, self._current, self.ahead, *others):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        self._owner = os.getpid()
        self.container = open_container(self._source, self.options)
        self.restart()

    def close(self) -> None:
        """Free the decoder and the file."""
        self._frames = iter(())
        self._current = self.ahead = None
        self.container.close()

    # -- demuxing and decoding ---------------------------------------------------------------------------------------

    def _decode(self, latest_start: int | None, first_packet: int = 0) -> Iterator[av.VideoFrame]:
        """Frames from the demuxer's position on, starting at a key frame.

        Args:
            latest_start: nothing comes out if the first key frame is after this time, or at one that the table lacks.
            first_packet: packets before this one, counted from the file's start, are passed over.
        """
        needs_key = self._has_keys
        earliest: int | None = None
        for packet, is_joint in self._moved_packets(first_packet):
            if is_joint:
                yield from self._not_before(earliest, self._decoded(None))
                self.decoder.flush_buffers()
                needs_key, earliest = True, None
            if needs_key:
                if not self.is_key(packet):
                    continue
                if latest_start is not None and not self._is_trusted_start(packet, latest_start):
                    return
                needs_key, earliest = False, self._earliest(packet)
            latest_start = None
            if self._wanted is not None:
                self._choose_dropping(packet)
            yield from self._not_before(earliest, self._decoded(packet))
            if packet.pts is not None and packet.pts == self._drain_at:
                self.is_lost = True
                break
        yield from self._not_before(earliest, self._decoded(None))

    def _is_trusted_start(self, packet: av.Packet, latest: int) -> bool:
        if packet.pts is None:
            return True
        place = int(np.searchsorted(self.table.key_pts, packet.pts))
        return packet.pts <= latest and place < len(self.table.key_pts) and self.table.key_pts[place] == packet.pts

    def _earliest(self, key: av.Packet) -> int | None:
        """H.264's decoder gives out leading pictures that it could not decode."""
        return key.pts if self.codec == "h264" and not self._is_untimed else None

    @staticmethod
    def _not_before(earliest: int | None, frames: list[av.VideoFrame]) -> list[av.VideoFrame]:
        if earliest is None:
            return frames
        return [frame for frame in frames if frame.pts is None or frame.pts >= earliest]

    def _moved_packets(self, first_packet: int) -> Iterator[tuple[av.Packet, bool]]:
        """Packets with times that never restart, and whether the clock restarted just before."""
        if self._joints is None:
            for packet in read_packets(self.container, self.stream, self.progress):
                if self._index_times:
                    packet.pts = packet.dts = self._index_times.get(packet.pos or 0, packet.pts or 0)
                yield packet, False
            return
        # Reading goes on where the last one stopped, so that jumping ahead reads no packet twice.
        if not self._next_number:
            self._numbered = enumerate(read_packets(self.container, self.stream, self.progress))
            self._clock = JoinedClock(self._joints)
        for number, packet in self._numbered:
            self._next_number = number + 1
            is_joint = self._clock.enters_part(number) and number > first_packet
            if number >= first_packet and self._clock.move(packet):
                yield packet, is_joint

    def _choose_dropping(self, packet: av.Packet) -> None:
        """See Note [Frames nobody asked for]."""
        wanted = packet.pts is None or self._wanted is None or packet.pts in self._wanted
        self.decoder.skip_frame = "DEFAULT" if wanted else "NONREF"
        if not wanted and packet.pts is not None:
            self._dropped.add(packet.pts)

    def _decoded(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        self.progress()
        try:
            return list(self.decoder.decode(packet))
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

    @property
    def tells_by_time(self) -> bool:
        """Whether packets' times tell them apart and say where decoding can start."""
        return self._has_keys and not self.table.untimed and self._joints is None and not self._index_times

    # -- moving ------------------------------------------------------------------------------------------------------

    def first_frame(self) -> Timed | None:
        """The first frame that comes out behind a restart or a seek; it is not taken away."""
        self.ahead = self.ahead or next(self._frames, None)
        return self.ahead

    def last_pts_from(self, pts: int) -> int:
        """Time of the last frame that comes out of a decoder that is put at `pts` and runs to the file's end."""
        self.seek(pts)
        ahead = [self.ahead] if self.ahead else []
        return max((at for at, _ in itertools.chain(ahead, self._frames)), default=pts)

    def seek(self, pts: int) -> None:
        """Put the decoder where it will output the frame at `pts`. See Note [Robust seek]."""
        key = self.table.key_before(pts)
        if self.table.joints is not None:
            self.seek_packet(self.table.joints.key_packets.get(key, 0))
            return
        self._forget_position()
        for seconds in () if self.table.untimed else BACK_OFF_SECONDS:
            if not self.seek_container(key, seconds):
                break
            self._frames = self._timed(self._decode(key))
            self.ahead = next(self._frames, None)
            if self.ahead is not None and self.ahead[0] <= pts:
                if self.is_key.is_checked or self.ahead[1].key_frame:
                    return
                self._distrust_flags()
                break
        self.restart()

    def seek_container(self, key: int, seconds_before: int) -> bool:
        """Move the demuxer to some place before a key frame; False where the container cannot."""
        try:
            self.container.seek(key - int(seconds_before / self.table.time_base), stream=self.stream)
        except av.FFmpegError as error:
            log.debug("%s: seek failed: %s", self.path, error)
            return False
        self.decoder.flush_buffers()
        return True

    def _distrust_flags(self) -> None:
        """Decode from the file's start from now on: what the container calls a key frame is none."""
        log.debug("%s: key frame flags are wrong", self.path)
        self.table = replace(self.table, key_pts=self.table.key_pts[:1], oddity="key frame flags are wrong")

    def seek_packet(self, first_packet: int) -> None:
        """The same by the number of the key frame's packet, where times do not tell places apart."""
        if first_packet < self._next_number:
            self._reopen()
        else:
            self.decoder.flush_buffers()
        self._forget_position()
        self._frames = self._timed(self._decode(None, first_packet))
        self.ahead = next(self._frames, None)

    def _must_seek(self, index: int) -> bool:
        known = self._current or self.ahead
        here = 0 if known is None else self.index(known[0])
        if index < here or self.is_lost or int(self.table.pts[index]) in self._dropped:
            return True
        return self._pays_to_jump(here, index)

    def _pays_to_jump(self, here: int, index: int) -> bool:
        """Whether a key frame at or before `index` is far enough ahead of `here`. See Note [Sequential or seek]."""
        if self.table.untimed:
            return False
        return self.index(self.table.key_before(int(self.table.pts[index]))) - here > SEEK_COST_FRAMES

    def index(self, pts: int) -> int:
        """Place in the table of the first frame at or after a time."""
        return int(np.searchsorted(self.table.pts, pts, side="left"))

    # -- reading -----------------------------------------------------------------------------------------------------

    def prepare(self, plan: Indices) -> None:
        """Tell which frames will be asked for. See Note [Frames nobody asked for]."""
        droppable = self.codec in DROPPABLE_CODECS and not self.table.untimed
        self._wanted = frozenset(self.table.pts[plan].tolist()) if droppable else None

    def frame(self, index: int, following: int | None) -> Timed | None:
        """The decoded frame shown at table entry `index`; None where it is missing.

        following: the entry that will be asked for next, if that is known.
        """
        target = int(self.table.pts[index])
        if self._current is not None and self._current[0] == target:
            return self._current
        jumps_next = following is not None and self._pays_to_jump(index, following)
        self._drain_at = target if jumps_next else None
        if self._must_seek(index):
            self.seek(target)
        while True:
            frame = self.ahead or next(self._frames, None)
            self.ahead = None
            if frame is None or frame[0] > target:
                self.ahead = frame
                return self._stale(target)
            self._current = frame
            if frame[0] == target:
                return frame

    def _stale(self, target: int) -> Timed | None:
        """See Note [Frames that do not decode]."""
        known = self._current
        is_fresh = known is not None and (target - known[0]) * self.table.time_base <= MAX_STALE_SECONDS
        return known if is_fresh else None
