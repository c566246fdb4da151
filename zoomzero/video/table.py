"""The frame table: when each frame is shown and where decoding can start, read from the container without decoding.

Note [Shown frames]
A player shows the frames of the edit list only, in the order of their presentation times. So packets that the demuxer
marks "discard" (before the first cut, needed for decoding only) and VP8 packets with show_frame = 0 (reference frames
that are never shown, RFC 6386 section 9.1) are no frames of the video. Time 0 is the first frame that can be shown,
whatever the container's own clock says at that point.

Note [Frames that cannot be decoded]
A file whose start was lost, or that was cut out of a longer one without decoding, begins with frames that refer to
pictures it does not have: those before the first key frame in decoding order, and those shown before that key frame
(leading pictures). They are left out of the table. The first are known from the packets; for the second the reader
decodes the first frame of each part and says which it was. H.264's decoder gives out leading pictures that it could
not decode, so there nothing before the key frame is believed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from zoomzero.video.errors import READ_ERRORS, VideoError
from zoomzero.video.keyframes import KeyTest, is_hidden_vp8
from zoomzero.video.packets import JOINT_SECONDS, Joints, Progress, ReadFailures, index_times, read_packets

Ticks = npt.NDArray[np.int64]

# A last frame is believed to last this many usual steps, or as long as the longest step before it.
MOST_LAST_STEPS = 10
# Containers that state some frames' times only: the demuxer makes up the others, differently after a seek. Places are
# told by the number of their packet there, as where the clock restarts.
INTERPOLATING_FORMATS = ("mpeg",)
# Neighbouring frames further apart than this are named in `damage`.
LONGEST_SILENT_GAP_SECONDS = 60.0
# Of joints and gaps, so many are named one by one.
MOST_NAMED = 4


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
        joints: where the container's clock restarts; also where places are to be told by the numbers of packets.
        ends_early: packets are missing at the end, so that the last one may be half a frame.
        oddity: why another reader's frame numbers, or its own choice of key frames, would be wrong here, or None.
    """

    pts: Ticks
    key_pts: Ticks
    time_base: Fraction
    end_pts: int
    damage: str | None = None
    untimed: bool = False
    joints: Joints | None = None
    ends_early: bool = False
    oddity: str | None = None

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

    def up_to(self, last_pts: int) -> FrameTable:
        """The table without the frames after `last_pts`."""
        kept = self.pts[: int(np.searchsorted(self.pts, last_pts, side="right"))]
        end = int(self.pts[len(kept)]) if len(kept) < len(self.pts) else self.end_pts
        return replace(self, pts=kept, end_pts=end)


@dataclass
class PacketList:
    """What one pass over the packets of a stream found, one entry per packet with content, in decoding order.

    Attributes:
        pts, dts: ticks; a packet without a decoding time has the one before it.
        is_key: decoding can start there.
        is_shown: the packet is a frame of the video. See Note [Shown frames].
        duration: ticks, 0 where unknown.
        all_timed: every packet has a presentation time.
        flags_lie: a packet is flagged as a key frame and is none.
        failures: what could not be read.
        index_times: times by place in the file, where the packets' own are wrong, or empty.
        last_place: byte in the file at which the last packet begins, 0 where the demuxer does not say.
        unread_from: byte at which another recording begins that the demuxer does not read, or None.
    """

    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    is_key: list[bool] = field(default_factory=list)
    is_shown: list[bool] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    all_timed: bool = True
    flags_lie: bool = False
    failures: ReadFailures = field(default_factory=ReadFailures)
    index_times: dict[int, int] = field(default_factory=dict)
    last_place: int = 0
    unread_from: int | None = None

    def part_starts(self, time_base: Fraction) -> list[int]:
        """Numbers of the packets at which the clock starts. See Note [Joined recordings] in packets."""
        falls = np.diff(np.asarray(self.dts, dtype=np.float64)) < -float(JOINT_SECONDS / time_base)
        return [0, *(np.flatnonzero(falls) + 1).tolist()]


def average_fps(table: FrameTable, stream: av.VideoStream) -> float:
    """The stream's own rate where its frames keep to it, else the mean rate of the frames."""
    stated = float(stream.average_rate) if stream.average_rate else 0.0
    span = float(table.pts[-1] - table.pts[0]) * float(table.time_base)
    if span <= 0:
        return stated or 1 / max(table.duration, 1e-6)
    mean = (len(table.pts) - 1) / span
    return stated if abs(stated - mean) <= 0.01 * mean else mean


def scan(container: av.container.InputContainer, stream: av.VideoStream, progress: Progress) -> PacketList:
    """One pass over the packets of a freshly opened stream, without decoding."""
    found = PacketList()
    places = []
    is_key = KeyTest(stream)
    is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
    last_dts = 0
    for packet in read_packets(container, stream, progress, found.failures):
        if packet.pts is None:
            found.all_timed = False
        places.append(packet.pos)
        found.pts.append(packet.pts or 0)
        last_dts = packet.dts if packet.dts is not None else last_dts
        found.dts.append(last_dts)
        found.is_key.append(is_key(packet))
        found.is_shown.append(not (packet.is_discard or (is_vp8 and is_hidden_vp8(packet))))
        found.duration.append(packet.duration or 0)
    found.flags_lie = is_key.lies
    found.last_place = max((place for place in places if place is not None), default=0)
    times = index_times(container, stream)
    if len(times) > len(places):
        found.index_times = times
        found.pts = [times.get(place or 0, pts) for place, pts in zip(places, found.pts, strict=True)]
        found.dts = list(found.pts)
    return found


@dataclass
class _Part:
    """Frames between two joints, in the container's own time."""

    first_packet: int
    pts: Ticks
    keys: Ticks
    key_packets: Ticks
    num_lost: int
    offset: int = 0


def read_table(
    found: PacketList,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    path: str,
    first_pts: Mapping[int, int] | None = None,
) -> FrameTable | None:
    """Frame table of a stream from its packets, or None when they carry no presentation times.

    Args:
        found: the packets.
        container, stream: where they came from.
        path: for errors.
        first_pts: for parts (by number) whose first decodable frame is known, its time on the container's own clock.

    Raises:
        VideoError: no frame is left to show.
    """
    # AVI knows no presentation times: with reordered frames what the demuxer calls so is a guess.
    if not found.all_timed or (container.format.name == "avi" and stream.codec_context.has_b_frames):
        return None
    time_base = stream.time_base
    assert time_base is not None  # a demuxed stream has one; narrows the type
    damage = _reading_damage(found, container, stream)
    starts = found.part_starts(time_base)
    is_h264 = stream.codec_context.codec.canonical_name == "h264"
    parts: list[_Part] = []
    for number, (first, end) in enumerate(zip(starts, [*starts[1:], len(found.pts)], strict=True)):
        part = _part(found, first, end, is_h264, (first_pts or {}).get(number))
        # A first part without a key frame is decoded from its start; a later one has nothing to start from.
        if len(part.pts) and (len(part.keys) or not number):
            parts.append(part)
    if not parts:
        raise VideoError(path, "no video frames" + (f" ({'; '.join(damage)})" if damage else ""))
    num_lost = sum(part.num_lost for part in parts)
    if num_lost:
        where = "the start of its parts" if len(parts) > 1 else "the start"
        damage.append(f"{num_lost} frames at {where} cannot be decoded: what they refer to is missing")
    step = _usual_step(parts, stream)
    _put_in_a_row(parts, step)
    pts = np.concatenate([part.pts + part.offset for part in parts])
    keys = np.concatenate([part.keys + part.offset for part in parts])
    last = _last_duration(found, parts[-1], pts, step)
    has_restarts = len(starts) > 1
    by_number = has_restarts or container.format.name in INTERPOLATING_FORMATS
    joints = _joints(parts, starts, keys) if by_number else None
    order = np.unique(keys) if len(keys) else pts[:1]
    ends_early = _num_cut_off(found, container, stream) > 0 or found.failures.final is not None
    table = FrameTable(pts, order, time_base, int(pts[-1]) + last, joints=joints, ends_early=ends_early)
    damage += (_joint_damage(parts, table) if has_restarts else []) + _gap_damage(table)
    oddity = damage[0] if num_lost or has_restarts else ("key frame flags are wrong" if found.flags_lie else None)
    return replace(table, damage="; ".join(damage) or None, oddity=oddity)


def _part(found: PacketList, first: int, end: int, is_h264: bool, first_pts: int | None) -> _Part:
    pts = np.asarray(found.pts[first:end], dtype=np.int64)
    is_key = np.asarray(found.is_key[first:end], dtype=bool)
    is_shown = np.asarray(found.is_shown[first:end], dtype=bool)
    key_at = np.flatnonzero(is_key)
    all_shown = np.unique(pts[is_shown])
    start = int(key_at[0]) if len(key_at) else 0
    shown = np.unique(pts[start:][is_shown[start:]])
    if is_h264 and len(key_at):
        shown = shown[shown >= pts[start]]
    if first_pts is not None:
        shown = shown[shown >= first_pts]
    keys, places = np.unique(pts[key_at], return_index=True)
    return _Part(first, shown, keys, first + key_at[places], len(all_shown) - len(shown))


def _put_in_a_row(parts: list[_Part], step: int) -> None:
    """Move each part to where the one before it ends."""
    for before, part in itertools.pairwise(parts):
        part.offset = int(before.pts[-1]) + before.offset + step - int(part.pts[0])


def _joints(parts: list[_Part], starts: list[int], keys: Ticks) -> Joints:
    offsets = {part.first_packet: part.offset for part in parts}
    packets = np.concatenate([part.key_packets for part in parts])
    return Joints(
        tuple(starts),
        tuple(offsets.get(start) for start in starts),
        dict(zip(keys.tolist(), packets.tolist(), strict=True)),
    )


def decode_table(
    frames: Iterator[object],
    found: PacketList,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    path: str,
) -> FrameTable:
    """Frame table by decoding a freshly opened stream to its end, for containers whose packets have no times.

    AVI with reordered frames and raw streams are such. Frames are placed by the stream's rate.

    Raises:
        VideoError: no frame decodes.
    """
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    assert stream.time_base is not None
    step = max(1, round(1 / (rate * stream.time_base)))
    damage = _reading_damage(found, container, stream)
    num_frames = 0
    try:
        for _ in frames:
            num_frames += 1
    except READ_ERRORS as error:
        damage.append(f"decoding stopped after {num_frames} frames: {error}")
    words = "; ".join(damage) or None
    if not num_frames:
        raise VideoError(path, "no video frame could be decoded" + (f" ({words})" if words else ""))
    pts = np.arange(num_frames, dtype=np.int64) * step
    return FrameTable(pts, pts[:1], stream.time_base, num_frames * step, words, untimed=True)


def _usual_step(parts: list[_Part], stream: av.VideoStream) -> int:
    steps = np.concatenate([np.diff(part.pts) for part in parts])
    if len(steps):
        return int(np.median(steps))
    rate = stream.average_rate or stream.guessed_rate
    return max(1, round(1 / (rate * stream.time_base))) if rate and stream.time_base else 1


def _last_duration(found: PacketList, part: _Part, pts: Ticks, step: int) -> int:
    """Ticks the last frame is shown. Muxers leave durations of one tick, and of hours; neither is believed."""
    at = max(i for i in range(part.first_packet, len(found.pts)) if found.pts[i] == part.pts[-1])
    claimed = found.duration[at]
    if len(pts) == 1:
        return claimed or step
    longest = max(MOST_LAST_STEPS * step, int(np.diff(pts).max()))
    return claimed if step / 2 <= claimed <= longest else step


# -- damage ----------------------------------------------------------------------------------------------------------


def _reading_damage(found: PacketList, container: av.container.InputContainer, stream: av.VideoStream) -> list[str]:
    unread = [] if found.unread_from is None else [f"another recording begins at byte {found.unread_from}, unread"]
    return _first_damage(found, container, stream) + unread


def _first_damage(found: PacketList, container: av.container.InputContainer, stream: av.VideoStream) -> list[str]:
    num_packets = len(found.pts)
    num_cut_off = _num_cut_off(found, container, stream)
    if num_cut_off:
        return [f"the file ends early: {num_packets} of {num_packets + num_cut_off} frames are there"]
    if found.failures.final is not None:
        return [f"reading stopped after {num_packets} frames: {found.failures.final}"]
    if found.index_times:
        return [f"{num_packets} of {len(found.index_times)} frames are there"]
    if found.failures.count:
        return [f"the container is damaged in {found.failures.count} places"]
    return []


def _num_cut_off(found: PacketList, container: av.container.InputContainer, stream: av.VideoStream) -> int:
    # The index of an ISO file lists every packet after its edit list is applied; other containers' counts are hints.
    indexed = len(stream.index_entries) if container.format.name.startswith("mov") else 0
    return max(0, indexed - len(found.pts))


def _joint_damage(parts: list[_Part], table: FrameTable) -> list[str]:
    origin = int(table.pts[0])
    at = [float((int(part.pts[0]) + part.offset - origin) * table.time_base) for part in parts[1:]]
    if not at:
        return ["the clock restarts where nothing can be decoded"]
    return [f"the clock restarts at {_listed([f'{seconds:.3f} s' for seconds in at])}; parts follow one another"]


def _gap_damage(table: FrameTable) -> list[str]:
    times = table.timestamps
    gaps = np.flatnonzero(np.diff(times) > LONGEST_SILENT_GAP_SECONDS)
    if not len(gaps):
        return []
    return [f"no frames from {_listed([f'{times[i]:.3f} to {times[i + 1]:.3f} s' for i in gaps])}"]


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more
