"""Recordings behind the end of the first one in a file, where the demuxer does not go on to them.

Files joined byte by byte are read to their end by some demuxers (MPEG-TS, Matroska, AVI); those of ISO files (mp4,
mov), FLV and ASF stop with the first recording, or pass over the others' index, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

# How a recording begins, by the demuxer's name: FLV version 1 with its header of nine bytes, ASF's header object.
BEGINNINGS = {
    "flv": (b"FLV\x01",),
    "asf": (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),),
}
# The demuxer stops there or near; more is not searched.
MOST_SEARCHED_BYTES = 16 << 20
# Of an ISO file; a fragment a second for a day.
MOST_BOXES = 2 * 86400


def second_recording(file: BinaryIO, container_format: str, last_packet_at: int) -> int | None:
    """Where another recording begins that the demuxer does not read, or None.

    Args:
        file: the whole file.
        container_format: the demuxer's name.
        last_packet_at: byte at which the last packet that was read begins.
    """
    if container_format.startswith("mov"):
        indices = [at for name, at, _ in top_level_boxes(file) if name == "moov"]
        return indices[1] if len(indices) > 1 else None
    for beginning in BEGINNINGS.get(container_format, ()):
        start = max(1, last_packet_at)
        file.seek(start)
        at = file.read(MOST_SEARCHED_BYTES).find(beginning)
        if at >= 0:
            return start + at
    return None


def top_level_boxes(file: BinaryIO, most: int = MOST_BOXES) -> Iterator[tuple[str, int, int]]:
    """Name, place and size in bytes of the top-level boxes of an ISO file, as far as they can be followed."""
    position = 0
    for _ in range(most):
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        size = int.from_bytes(head[:4], "big")
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:16], "big")
        yield head[4:8].decode("latin-1"), position, size
        if size < 8:
            return
        position += size
