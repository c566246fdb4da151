"""What a freshly opened file holds: its frame table, from the packets and from the few frames that must be decoded."""

from __future__ import annotations

import av

from zoomzero.video.errors import VideoError
from zoomzero.video.frame_reader import FrameReader
from zoomzero.video.packets import Joints
from zoomzero.video.table import FrameTable, PacketList, decode_table, read_table

# Of joined recordings, so many beginnings are tried for frames that cannot be decoded.
MOST_TRIED_PARTS = 16


def probe(reader: FrameReader) -> av.VideoFrame:
    """Give a freshly opened reader its table of the frames that can be decoded; returns the first of them.

    Raises:
        VideoError: there is none.
    """
    found = reader.scan()
    reader.progress()
    table = read_table(found, reader.container, reader.stream, reader.path)
    reader.progress()
    if table is None:
        frames = reader.decode_all()
        table = decode_table(frames, found, reader.container, reader.stream, reader.path)
    reader.use(table)
    first = reader.first_frame()
    if first is None:
        raise VideoError(reader.path, f"no frame could be decoded ({reader.stream.codec_context.name})")
    if not table.untimed:
        table = _from_first_decodable(reader, found, first[0])
        if table.ends_early:
            reader.use(table)
            table = table.up_to(reader.last_pts_from(int(table.pts[-1])))
    if reader.table is not table or reader.ahead is not first:
        reader.use(table)
    return first[1]


def _from_first_decodable(reader: FrameReader, found: PacketList, first_pts: int) -> FrameTable:
    """See Note [Frames that cannot be decoded] in table."""
    table = reader.table
    firsts = {0: first_pts}
    if table.joints is not None:
        firsts = _first_of_parts(reader, table.joints)
    elif first_pts <= table.pts[0]:
        return table
    return read_table(found, reader.container, reader.stream, reader.path, firsts) or table


def _first_of_parts(reader: FrameReader, joints: Joints) -> dict[int, int]:
    """Time of the first frame that decodes, on the container's own clock, by the number of its part."""
    firsts = {}
    for part, offset in enumerate(joints.offsets[:MOST_TRIED_PARTS]):
        later = [number for number in joints.key_packets.values() if number >= joints.first_packets[part]]
        if offset is None or not later:
            continue
        reader.seek_packet(min(later))
        if reader.ahead is not None:
            firsts[part] = reader.ahead[0] - offset
    return firsts
