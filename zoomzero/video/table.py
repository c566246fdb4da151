"""The frame table: when each frame is shown and where decoding can start, read from the container without decoding.

Note [Shown frames]
A player shows the frames of the edit list only, in the order of their presentation times. So packets that the demuxer
marks "discard" (before the first cut, needed for decoding only) and VP8 packets with show_frame = 0 (reference frames
that are never shown, RFC 6386 section 9.1) are no frames of the video. Time 0 is the first shown frame, whatever the
container's own clock says at that point.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from zoomzero.video.errors import READ_ERRORS, VideoError


@dataclass(frozen=True)
class FrameTable:
    """Frames in presentation order.

    Attributes:
        pts: int64 [N], presentation times in units of time_base, strictly rising.
        key_pts: int64 [K], rising presentation times of the packets decoding can start at (not all of them are shown).
        time_base: seconds per unit of pts.
        end_pts: when the last frame stops being shown.
        damage: what is missing, in words, or None for a whole file.
        untimed: packets carry no times, so the n-th decoded frame is the n-th entry and only decoding from the start
            tells which frame is which.
    """

    pts: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]
    time_base: Fraction
    end_pts: int
    damage: str | None = None
    untimed: bool = False

    @property
    def timestamps(self) -> npt.NDArray[np.float64]:
        """float64 [N], seconds from the first frame, rounded once: frame i of 30 a second starts at exactly i / 30."""
        ticks = np.asarray(self.pts - self.pts[0], dtype=np.float64)
        return ticks * self.time_base.numerator / self.time_base.denominator

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    def key_before(self, pts: int) -> int:
        """Presentation time of the last place at or before `pts` where decoding can start."""
        position = int(np.searchsorted(self.key_pts, pts, side="right")) - 1
        return int(self.key_pts[max(position, 0)])


@dataclass
class _Packets:
    """What one pass over the packets of a stream found."""

    shown: list[int]
    keys: list[int]
    last_duration: int
    num_packets: int
    all_timed: bool
    error: str | None


def _is_hidden_vp8(packet: av.Packet) -> bool:
    first = bytes(memoryview(packet)[:1])
    return bool(first) and not first[0] >> 4 & 1


def average_fps(table: FrameTable, stream: av.VideoStream) -> float:
    """The stream's own rate where its frames keep to it, else the mean rate of the frames."""
    stated = float(stream.average_rate) if stream.average_rate else 0.0
    span = float(table.pts[-1] - table.pts[0]) * float(table.time_base)
    if span <= 0:
        return stated or 1 / max(table.duration, 1e-6)
    mean = (len(table.pts) - 1) / span
    return stated if abs(stated - mean) <= 0.01 * mean else mean


def _scan(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    found = _Packets([], [], 0, 0, True, None)
    is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
    last_pts: int | None = None
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            found.num_packets += 1
            if packet.pts is None:
                found.all_timed = False
                continue
            if packet.is_keyframe:
                found.keys.append(packet.pts)
            if packet.is_discard or (is_vp8 and _is_hidden_vp8(packet)):
                continue
            found.shown.append(packet.pts)
            if last_pts is None or packet.pts >= last_pts:
                last_pts, found.last_duration = packet.pts, packet.duration or 0
    except READ_ERRORS as error:
        found.error = str(error)
    return found


def read_table(container: av.container.InputContainer, stream: av.VideoStream, path: str) -> FrameTable | None:
    """Frame table of a stream by one pass over its packets, or None when packets carry no presentation times.

    Raises:
        VideoError: no frame is left to show.
    """
    found = _scan(container, stream)
    damage = _damage(found, container, stream)
    # AVI knows no presentation times: with reordered frames what the demuxer calls so is a guess.
    if not found.all_timed or (container.format.name == "avi" and stream.codec_context.has_b_frames):
        return None
    if not found.shown:
        raise VideoError(path, "no video frames" + (f" ({damage})" if damage else ""))
    pts = np.unique(np.asarray(found.shown, dtype=np.int64))
    keys = np.unique(np.asarray(found.keys or [int(pts[0])], dtype=np.int64))
    assert stream.time_base is not None  # a demuxed stream has one; narrows the type
    usual = _usual_step(pts, stream)
    # Some muxers leave a duration of one tick; a last frame that short is not believed.
    last = found.last_duration if found.last_duration >= usual / 2 else usual
    return FrameTable(pts, keys, stream.time_base, int(pts[-1]) + last, damage)


def decode_table(container: av.container.InputContainer, stream: av.VideoStream, path: str) -> FrameTable:
    """Frame table by decoding a freshly opened stream to its end, for containers whose packets have no times.

    AVI with reordered frames and raw streams are such. Frames are placed by the stream's rate.

    Raises:
        VideoError: no frame decodes.
    """
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    assert stream.time_base is not None
    step = max(1, round(1 / (rate * stream.time_base)))
    num_frames = 0
    damage: str | None = None
    try:
        for _ in container.decode(stream):
            num_frames += 1
    except READ_ERRORS as error:
        damage = f"decoding stopped after {num_frames} frames: {error}"
    if not num_frames:
        raise VideoError(path, "no video frame could be decoded" + (f" ({damage})" if damage else ""))
    pts = np.arange(num_frames, dtype=np.int64) * step
    return FrameTable(pts, pts[:1], stream.time_base, num_frames * step, damage, untimed=True)


def _usual_step(pts: npt.NDArray[np.int64], stream: av.VideoStream) -> int:
    if len(pts) > 1:
        return int(np.median(np.diff(pts)))
    rate = stream.average_rate or stream.guessed_rate
    return max(1, round(1 / (rate * stream.time_base))) if rate and stream.time_base else 1


def _damage(found: _Packets, container: av.container.InputContainer, stream: av.VideoStream) -> str | None:
    # The index of an ISO file lists every packet after its edit list is applied; other containers' counts are hints.
    indexed = len(stream.index_entries) if container.format.name.startswith("mov") else 0
    if found.num_packets < indexed:
        return f"the file ends early: {found.num_packets} of {indexed} frames are there"
    if found.error:
        return f"reading stopped after {found.num_packets} frames: {found.error}"
    return None
