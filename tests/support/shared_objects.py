"""What an ELF shared object demands of others: read from its own tables, without binutils."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

_DYNAMIC, _DYNSYM = 6, 11
_NEEDED = 1


class Section(NamedTuple):
    """The parts of an ELF64 section header that are read here."""

    kind: int
    offset: int
    size: int
    link: int


def _sections(image: bytes) -> list[Section]:
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"a 64-bit little-endian ELF file is needed, got {image[:6]!r}; pass a shared object")
    (start,) = struct.unpack_from("<Q", image, 0x28)
    width, count = struct.unpack_from("<HH", image, 0x3A)
    found = []
    for index in range(count):
        header = struct.unpack_from("<IIQQQQII", image, start + index * width)
        found.append(Section(kind=header[1], offset=header[4], size=header[5], link=header[6]))
    return found


def _text(image: bytes, strings: Section, place: int) -> str:
    begin = strings.offset + place
    return image[begin : image.index(b"\0", begin)].decode()


def _contents(image: bytes, section: Section) -> bytes:
    return image[section.offset : section.offset + section.size]


def needed_libraries(path: Path) -> list[str]:
    """The names under DT_NEEDED."""
    image = path.read_bytes()
    sections = _sections(image)
    return [
        _text(image, sections[section.link], value)
        for section in sections
        if section.kind == _DYNAMIC
        for tag, value in struct.iter_unpack("<qQ", _contents(image, section))
        if tag == _NEEDED
    ]


def undefined_symbols(path: Path) -> list[str]:
    """The mangled names that another library must define."""
    image = path.read_bytes()
    sections = _sections(image)
    return [
        _text(image, sections[section.link], name)
        for section in sections
        if section.kind == _DYNSYM
        for name, _, _, home, _, _ in struct.iter_unpack(
            "<IBBHQQ", image[section.offset : section.offset + section.size]
        )
        if name != 0 and home == 0
    ]
