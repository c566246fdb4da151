"""Subtitles as .srt files hold them, cut to parts of a video. The files come from anywhere, so all of it is bounded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# A feature film's subtitles are about 100 kB and 2,000 cues.
MAX_FILE_BYTES = 8 << 20
MAX_CUES = 50_000
MAX_CUE_CHARACTERS = 1_000
# Of one prompt: about 4,000 tokens. Where more is said, evenly many lines are left out.
MAX_TEXT_CHARACTERS = 16_000

# Digits are bounded and every part is separated by a character outside it: linear in the line.
_TIME = r"(?:([0-9]{1,4}):)?([0-5]?[0-9]):([0-5]?[0-9])[,.]([0-9]{1,3})"
_TIMING = re.compile(rf"\s{{0,8}}{_TIME}\s{{1,8}}-->\s{{1,8}}{_TIME}(?:\s.*)?")
_MARKUP = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,200}\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Cue:
    """One caption."""

    start: float
    """Seconds at which it appears."""
    end: float
    """Seconds at which it goes."""
    text: str
    """One line, without markup."""


@dataclass(frozen=True)
class Subtitles:
    """What is said in a video, in order of time."""

    cues: tuple[Cue, ...]
    """At least one."""

    def text(self, start: float, end: float) -> str:
        """What is said between two times in seconds, one line per cue; empty where nothing is.

        At most `MAX_TEXT_CHARACTERS`: lines are left out evenly where it would be more.
        """
        lines = [cue.text for cue in self.cues if cue.start < end and cue.end > start]
        length = sum(len(line) + 1 for line in lines)
        if length > MAX_TEXT_CHARACTERS:
            kept = max(1, len(lines) * MAX_TEXT_CHARACTERS // length)
            lines = [lines[index * len(lines) // kept] for index in range(kept)]
        return "\n".join(lines)[:MAX_TEXT_CHARACTERS]


def load_subtitles(path: str | os.PathLike[str]) -> Subtitles:
    """Read an .srt file (UTF-8, or UTF-16 with its mark).

    Cues without text, and those that end before they start, are left out; of a longer cue the first
    `MAX_CUE_CHARACTERS` count.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, not text, or holds no cue.
    """
    file = Path(path)
    with file.open("rb") as opened:
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{file}: subtitles must have at most {MAX_FILE_BYTES} bytes, got more; cut the file")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: subtitles must be UTF-8 text, got {error.reason}; convert the file") from error
    cues = _cues(text, file)
    if not cues:
        raise ValueError(
            f"{file}: must hold cues such as '00:00:01,000 --> 00:00:03,500' followed by text, got none; use an .srt "
            "file"
        )
    return Subtitles(tuple(sorted(cues, key=lambda cue: (cue.start, cue.end))))


def _cues(text: str, file: Path) -> list[Cue]:
    cues: list[Cue] = []
    timing: tuple[float, float] | None = None
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        match = _TIMING.fullmatch(line) if "-->" in line else None
        if match is None and line.strip():
            lines.append(line)
            continue
        if timing is not None:
            # A cue that follows without an empty line leaves its number behind the text.
            said = lines[:-1] if match is not None and lines and lines[-1].strip().isdigit() else lines
            words = " ".join(_CONTROL.sub(" ", _MARKUP.sub("", " ".join(said)[: 4 * MAX_CUE_CHARACTERS])).split())
            if words and timing[0] <= timing[1]:
                cues.append(Cue(*timing, words[:MAX_CUE_CHARACTERS]))
            if len(cues) > MAX_CUES:
                raise ValueError(f"{file}: subtitles must have at most {MAX_CUES} cues, got more; cut the file")
        numbers = None if match is None else [int(number or 0) for number in _padded(match)]
        timing = None if numbers is None else (_seconds(numbers[:4]), _seconds(numbers[4:]))
        lines = []
    return cues


def _padded(match: re.Match[str]) -> list[str | None]:
    """The groups of a timing; fractions of a second as milliseconds."""
    groups = list(match.groups())
    for place in (3, 7):
        groups[place] = str(groups[place]).ljust(3, "0")
    return groups


def _seconds(parts: list[int]) -> float:
    hours, minutes, seconds, milliseconds = parts
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
