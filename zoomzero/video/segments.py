"""Decoding side by side: what lies between a plan's jumps, in decoders of their own.

Note [Segments]
A plan that jumps from key frame to key frame falls into segments: a key frame and what follows it up to the last wanted
frame before the next jump. Segments do not depend on each other, so each is decoded by one of a few single-threaded
decoders, which waits for nobody, while a decoder with threads of its own would be emptied at every jump. The frames are
the same: a segment's decoder starts as empty as after a seek.

A segment whose frames do not all come out (damage, a container that does not lead there, a key frame that is none) is
left to `FrameReader`, which knows what then stands in.
"""

from __future__ import annotations

import itertools
import os
import queue
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import av

from zoomzero.video.base import Indices
from zoomzero.video.errors import READ_ERRORS
from zoomzero.video.frame_reader import BACK_OFF_SECONDS, DROPPABLE_CODECS, FrameReader
from zoomzero.video.packets import read_packets

# Those whose decoder needs nothing of the container but what `_new_decoder` copies.
CODECS = ("h264", "hevc", "mpeg1video", "mpeg2video", "vp8", "vp9")
COPIED = ("codec_tag", "width", "height", "color_primaries", "color_trc", "colorspace", "color_range")
MOST_DECODERS = 8
# Decoders hold up to this many frames each, and all of a video's together this many bytes, unless they decode key
# frames alone.
FRAMES_PER_DECODER, MOST_DECODER_BYTES = 8, 512 << 20
# Wanted frames of a segment, and of all segments that are being decoded or wait until they are asked for.
MOST_WANTED, MOST_WAITING = 8, 16
# To a key frame so near ahead, packets are read rather than sought.
NEAR_FRAMES = 64
# Compressed bytes of a segment; a larger one is read frame by frame.
MOST_SEGMENT_BYTES = 32 << 20
# How often a decoder that works on a long segment is seen to live.
WATCH_SECONDS = 0.05

Frames = dict[int, av.VideoFrame]


@dataclass(frozen=True)
class Segment:
    """Wanted frames from a key frame to the next jump, as presentation times."""

    key: int
    wanted: tuple[int, ...]


def segments_of(reader: FrameReader, plan: Indices) -> list[Segment]:
    """A plan's rising, distinct frames by the key frame that each is decoded from."""
    table = reader.table
    times = table.pts[plan].tolist()
    return [Segment(key, tuple(wanted)) for key, wanted in itertools.groupby(times, key=table.key_before)]


def num_decoders(reader: FrameReader, segments: list[Segment], frame_pixels: int) -> int:
    """How many decoders share the segments; below 2, frames are better read one after the other."""
    if (
        reader.codec not in CODECS
        or not reader.tells_by_time
        or max(len(part.wanted) for part in segments) > MOST_WANTED
    ):
        return 1
    number = min(reader.options.num_threads or _num_cores(), MOST_DECODERS, len(segments))
    if all(part.wanted == (part.key,) for part in segments):
        return number
    return min(number, MOST_DECODER_BYTES // (FRAMES_PER_DECODER * frame_pixels * 3 // 2))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Packets:
    """Collects the packets of segments with the demuxer of a reader, which loses its place."""

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader
        self._packets: Iterator[av.Packet] = iter(())
        self._last_pts: int | None = None

    def of(self, segment: Segment) -> list[av.Packet]:
        """Packets from the segment's key frame on, until those of all wanted frames are there.

        Fewer where they are too large, none where the container does not lead there.
        """
        reader = self._reader
        if not reader.is_lost:
            # Somebody else has moved the demuxer.
            reader.is_lost, self._last_pts = True, None
        ahead = 0 if self._last_pts is None else reader.index(segment.key) - reader.index(self._last_pts)
        if 0 < ahead <= NEAR_FRAMES and (packets := self._collect(segment)):
            return packets
        for seconds in BACK_OFF_SECONDS:
            if not reader.seek_container(segment.key, seconds):
                return []
            self._packets = read_packets(reader.container, reader.stream, reader.progress)
            if packets := self._collect(segment):
                return packets
        return []

    def _collect(self, segment: Segment) -> list[av.Packet]:
        packets: list[av.Packet] = []
        left, num_bytes = set(segment.wanted), 0
        for packet in self._packets:
            if packet.pts is None:
                return []
            if not packets and (packet.pts != segment.key or not self._reader.is_key(packet)):
                if packet.pts > segment.key and self._reader.is_key(packet):
                    return []
                continue
            self._last_pts = max(packet.pts, self._last_pts or packet.pts)
            packets.append(packet)
            left.discard(packet.pts)
            num_bytes += packet.size
            if not left or num_bytes > MOST_SEGMENT_BYTES:
                break
        return packets


class SegmentReader:
    """Decodes the segments of one plan ahead of who takes the frames, in order.

    Args:
        reader: where packets come from; only the thread that calls `take` uses it.
        segments: of a plan, as `segments_of` gives them.
        num_decoders: side by side.
    """

    def __init__(self, reader: FrameReader, segments: list[Segment], num_decoders: int) -> None:
        self._reader = reader
        self._packets = _Packets(reader)
        self._next: Iterator[Segment] = iter(segments)
        self._running: deque[tuple[Segment, Future[Frames]]] = deque()
        self._num_decoders = num_decoders
        self._decoders: queue.SimpleQueue[av.VideoCodecContext] = queue.SimpleQueue()
        for _ in range(num_decoders):
            self._decoders.put(self._new_decoder())
        self._pool = ThreadPoolExecutor(num_decoders, thread_name_prefix="zoomzero-decode")
        self._num_decoded = 0

    def _new_decoder(self) -> av.VideoCodecContext:
        """A decoder of what the stream's own decodes, without threads."""
        own = self._reader.decoder
        decoder = av.CodecContext.create(own.codec, "r")
        assert isinstance(decoder, av.VideoCodecContext)  # of a video stream
        decoder.extradata = own.extradata
        for name in COPIED:
            setattr(decoder, name, getattr(own, name))
        decoder.thread_count, decoder.thread_type = 1, "NONE"
        decoder.options = {"max_pixels": str(self._reader.options.max_pixels)}
        return decoder

    def take(self, pts: int) -> av.VideoFrame | None:
        """The frame at a time of the plan, times rising; None where it is to be read otherwise."""
        while True:
            self._start_some()
            if not self._running or pts < self._running[0][0].wanted[0]:
                return None
            segment, future = self._running[0]
            if pts <= segment.wanted[-1]:
                return self._result(future).get(pts)
            self._running.popleft()
            future.cancel()

    def _start_some(self) -> None:
        waiting = sum(len(segment.wanted) for segment, _ in self._running)
        while waiting < MOST_WAITING and (segment := next(self._next, None)) is not None:
            packets = self._packets.of(segment)
            self._running.append((segment, self._pool.submit(self._decode, packets, frozenset(segment.wanted))))
            waiting += len(segment.wanted)

    def _result(self, future: Future[Frames]) -> Frames:
        """Waits; says that the decoders live as long as any of them decodes packets."""
        seen = self._num_decoded
        while True:
            try:
                return future.result(WATCH_SECONDS)
            except TimeoutError:
                if self._num_decoded != seen:
                    seen = self._num_decoded
                    self._reader.progress()

    def _decode(self, packets: list[av.Packet], wanted: frozenset[int]) -> Frames:
        """Runs in a thread of the pool."""
        decoder = self._decoders.get()
        drops = self._reader.codec in DROPPABLE_CODECS
        frames: Frames = {}
        try:
            for packet in [*packets, None]:
                if drops and packet is not None:
                    decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in decoder.decode(packet):
                    if frame.pts in wanted:
                        frames[frame.pts] = frame
                self._num_decoded += 1
            decoder.flush_buffers()
        except READ_ERRORS:
            decoder.flush_buffers()
            return {}
        finally:
            self._decoders.put(decoder)
        return frames if len(frames) == len(wanted) else {}

    def close(self) -> None:
        """End the threads and free the decoders."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._running.clear()
