"""Where decoding can start: packets whose own bytes say so, not only their container's flag.

A container may flag every packet as a key frame (an index without its sync table, careless muxers). Decoding from a
flagged packet that is none gives grey or smeared pictures, so for the usual codecs the flag counts only where the
picture's header agrees:

- MPEG-4 part 2 (ISO 14496-2, 6.2.5): vop_coding_type 0 (I); the flag is not even asked.
- MPEG-1 and 2 (ISO 13818-2, 6.2.3): picture_coding_type 1 (I).
- H.264 (ITU-T H.264, 7.3.1 and 7.3.3): an IDR slice, a recovery point, or a first slice of type I.
- HEVC (ITU-T H.265, table 7-1): a slice of types 16 to 23 (IRAP).
- VP8 (RFC 6386, 9.1) and VP9 (bitstream specification, 6.2): frame_type 0.

Other codecs' flags are believed until a frame decoded from such a packet is no key frame (`pyav`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import av

# Headers stand at a packet's beginning; parameter sets and SEI messages before the first slice are shorter than this.
HEAD_BYTES = 4096

_SLICE, _IDR, _SEI = 1, 5, 6
_RECOVERY_POINT = 6
# slice_type of I and SI slices, each also as "all slices of this picture are" (+ 5).
_INTRA_SLICES = (2, 4, 7, 9)

Judge = Callable[[bytes], bool | None]


class KeyTest:
    """Whether decoding can start at a packet of one stream.

    Attributes:
        is_checked: packets' own headers are asked, not only the container's flags.
        lies: a flag was seen that the packet's own header denies.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        context = stream.codec_context
        name = context.codec.canonical_name
        extradata = bytes(context.extradata or b"")
        self._asks_flag = name != "mpeg4"
        judges: dict[str, Judge] = {
            "mpeg4": _mpeg4,
            "mpeg1video": _mpeg12,
            "mpeg2video": _mpeg12,
            "vp8": _vp8,
            "vp9": _vp9,
            "h264": lambda data: _h264(data, _length_bytes(extradata, 4)),
            "hevc": lambda data: _hevc(data, _length_bytes(extradata, 21)),
        }
        self._judge = judges.get(name)
        self.is_checked = self._judge is not None
        self.lies = False

    def __call__(self, packet: av.Packet) -> bool:
        flagged = bool(packet.is_keyframe)
        if self._judge is None or (self._asks_flag and not flagged):
            return flagged
        verdict = self._judge(bytes(memoryview(packet)[:HEAD_BYTES]))
        if verdict is None:
            return flagged
        self.lies |= flagged and not verdict
        return verdict


def is_hidden_vp8(packet: av.Packet) -> bool:
    """Whether a VP8 packet is a reference that is never shown (show_frame 0)."""
    first = bytes(memoryview(packet)[:1])
    return bool(first) and not first[0] >> 4 & 1


def _mpeg4(data: bytes) -> bool | None:
    at = data.find(b"\0\0\1\xb6")
    return None if at < 0 or at + 4 >= len(data) else data[at + 4] >> 6 == 0


def _mpeg12(data: bytes) -> bool | None:
    at = data.find(b"\0\0\1\0")
    return None if at < 0 or at + 5 >= len(data) else data[at + 5] >> 3 & 7 == 1


def _vp8(data: bytes) -> bool | None:
    return not data[0] & 1 if data else None


def _vp9(data: bytes) -> bool | None:
    if not data or data[0] >> 6 != 2:
        return None
    bits = int.from_bytes(data[:2].ljust(2, b"\0"), "big")
    # Behind the marker and two profile bits; profile 3 has a reserved bit more.
    place = 11 - (data[0] >> 4 & 3 == 3)
    shows_existing, frame_type = bits >> place & 1, bits >> (place - 1) & 1
    return not shows_existing and not frame_type


def _length_bytes(extradata: bytes, place: int) -> int:
    """Bytes of the length before each NAL unit (avcC, hvcC), or 0 where start codes part them (annex B)."""
    if len(extradata) <= place or extradata[0] != 1:
        return 0
    return (extradata[place] & 3) + 1


def _nal_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """NAL units from their header on; the last may be cut."""
    if length_bytes:
        at = 0
        while at + length_bytes < len(data):
            size = int.from_bytes(data[at : at + length_bytes], "big")
            yield data[at + length_bytes : at + length_bytes + size]
            at += length_bytes + size
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        end = data.find(b"\0\0\1", at + 3)
        yield data[at + 3 : end if end >= 0 else len(data)]
        at = end


def _h264(data: bytes, length_bytes: int) -> bool | None:
    recovers = False
    for unit in _nal_units(data, length_bytes):
        kind = unit[0] & 31 if unit else 0
        if kind == _IDR:
            return True
        if kind == _SEI:
            recovers |= _RECOVERY_POINT in _sei_types(unit[1:])
        if kind == _SLICE:
            slice_type = _second_golomb(unit[1:9])
            return None if slice_type is None else recovers or slice_type in _INTRA_SLICES
    return None


def _sei_types(data: bytes) -> Iterator[int]:
    """Payload types of an SEI unit's messages: type and size are sums of bytes up to the first below 255."""
    at = 0
    while at + 2 < len(data):
        numbers = []
        for _ in range(2):
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            if at == len(data):
                return
            numbers.append(number + data[at])
            at += 1
        yield numbers[0]
        at += numbers[1]


def _hevc(data: bytes, length_bytes: int) -> bool | None:
    for unit in _nal_units(data, length_bytes):
        kind = unit[0] >> 1 & 63 if unit else 63
        if kind < 32:
            return 16 <= kind <= 23
    return None


def _second_golomb(data: bytes) -> int | None:
    """The second Exp-Golomb number (slice_type, behind first_mb_in_slice)."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0
    value = 0
    for _ in range(2):
        zeros = len(bits) - at - len(bits[at:].lstrip("0"))
        end = at + 2 * zeros + 1
        if end > len(bits):
            return None
        value = int(bits[at + zeros : end], 2) - 1
        at = end
    return value
