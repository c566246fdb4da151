"""Packets of one stream as they lie in the file, past damaged places, with a clock that never restarts.

Note [Joined recordings]
Where recordings were joined byte by byte, the container's clock starts anew at each joint, and a seek by time can land
in any part. Decoding times rise within a recording, so a fall of more than JOINT_SECONDS is a joint. Each part's times
are moved so that its first frame follows the last one of the part before; places to start from are told by the number
of their packet, and jumping there means reading packets without decoding them. A decoder is emptied at each joint: the
frames after it must not refer to those before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av

from zoomzero.video.errors import READ_ERRORS

log = logging.getLogger(__name__)

# Muxers let decoding times jitter by a few frames; recordings last longer.
JOINT_SECONDS = 0.25
# A demuxer that fails finds its way again behind the damage, or fails for ever.
MOST_FAILURES = 64

Progress = Callable[[], None]


def no_progress() -> None:
    """For readers whose progress nobody watches."""


@dataclass(frozen=True)
class Joints:
    """Where the clock restarts. See Note [Joined recordings].

    Attributes:
        first_packets: number of the first packet of each part, counted over the stream's packets in the file.
        offsets: ticks added to the times of each part; None for a part of which nothing can be decoded.
        key_packets: number of the packet to start from, by its moved presentation time.
    """

    first_packets: tuple[int, ...]
    offsets: tuple[int | None, ...]
    key_packets: dict[int, int]


@dataclass
class ReadFailures:
    """What the demuxer could not read.

    Attributes:
        count: places that were passed over.
        final: why reading ended before the file did, or None.
    """

    count: int = 0
    final: str | None = None


def read_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    progress: Progress = no_progress,
    failures: ReadFailures | None = None,
) -> Iterator[av.Packet]:
    """The stream's packets with content, from the demuxer's position on; what cannot be read is passed over."""
    failures = failures or ReadFailures()
    in_a_row = 0
    while True:
        try:
            for packet in container.demux(stream):
                progress()
                in_a_row = 0
                if packet.size:
                    yield packet
            return
        except READ_ERRORS as error:
            log.debug("reading packets failed: %s", error)
            progress()
            in_a_row += 1
            if in_a_row > MOST_FAILURES or isinstance(error, EOFError):
                failures.final = str(error)
                return
            failures.count += in_a_row == 1


def index_times(container: av.container.InputContainer, stream: av.VideoStream) -> dict[int, int]:
    """Times of an AVI's packets by their place in the file, from its index.

    Behind a damaged place the demuxer counts frames on as if none were lost; a seek goes by the index. Empty for other
    containers.
    """
    if container.format.name != "avi":
        return {}
    # An entry names the chunk, a packet what is behind its header of eight bytes.
    return {entry.pos + 8: entry.timestamp for entry in stream.index_entries}


class JoinedClock:
    """Moves the times of packets that are read from a file's start. See Note [Joined recordings]."""

    def __init__(self, joints: Joints) -> None:
        self._joints = joints
        self._part = 0

    def enters_part(self, number: int) -> bool:
        """Whether the packet of that number is the first of a later part; numbers must rise."""
        firsts = self._joints.first_packets
        before = self._part
        while self._part + 1 < len(firsts) and number >= firsts[self._part + 1]:
            self._part += 1
        return self._part != before

    def move(self, packet: av.Packet) -> bool:
        """Move the packet, which is of the part entered last; False where nothing of that part can be decoded."""
        offset = self._joints.offsets[self._part]
        if offset is None:
            return False
        if packet.pts is not None:
            packet.pts += offset
        if packet.dts is not None:
            packet.dts += offset
        return True
