"""Subtitle files as people have them, and as nobody should."""

import itertools
import time
from pathlib import Path

import pytest

from zoomzero.answering.subtitles import MAX_CUE_CHARACTERS, MAX_CUES, MAX_TEXT_CHARACTERS, load_subtitles

SRT = """1
00:00:01,000 --> 00:00:03,500
<i>Good</i> morning,
everyone.

2
00:01:05.25 --> 01:01:06,000 X1:12 Y1:4
{\\an8}Look at the cat.
3
00:00:04,000 --> 00:00:05,000
-- 4 --

4
00:00:09,000 --> 00:00:08,000
ends before it starts

5
00:00:10,000 --> 00:00:12,000

"""


def _load(folder: Path, content: bytes) -> list[tuple[float, float, str]]:
    file = folder / "said.srt"
    file.write_bytes(content)
    return [(cue.start, cue.end, cue.text) for cue in load_subtitles(file).cues]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_cues_are_read_in_order_without_markup(tmp_path: Path, encoding: str, line_end: str) -> None:
    assert _load(tmp_path, SRT.replace("\n", line_end).encode(encoding)) == [
        (1.0, 3.5, "Good morning, everyone."),
        (4.0, 5.0, "-- 4 --"),
        (65.25, 3666.0, "Look at the cat."),
    ]


def test_text_is_cut_to_a_part(tmp_path: Path) -> None:
    file = tmp_path / "said.srt"
    file.write_text(SRT)
    said = load_subtitles(file)
    assert said.text(0.0, 4.0) == "Good morning, everyone."
    assert said.text(3.4, 4.1) == "Good morning, everyone.\n-- 4 --"
    assert said.text(3.5, 4.0) == ""
    assert said.text(100.0, 200.0) == "Look at the cat."


def test_long_text_is_thinned_evenly(tmp_path: Path) -> None:
    starts = [f"00:{second // 60:02d}:{second % 60:02d}" for second in range(3000)]
    lines = "".join(f"{start},000 --> {start},500\n{number:04d} word\n\n" for number, start in enumerate(starts))
    file = tmp_path / "said.srt"
    file.write_text(lines)
    text = load_subtitles(file).text(0.0, 3000.0)
    numbers = [int(line[:4]) for line in text.splitlines()]
    assert len(text) <= MAX_TEXT_CHARACTERS
    assert len(text) > MAX_TEXT_CHARACTERS * 0.9
    assert numbers[0] == 0
    assert numbers[-1] > 2990
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold cues"),
        (b"just text\n", "must hold cues"),
        (b"\xff\xff\xff", "must be UTF-8 text"),
        (b"00:00:01,000 --> 00:00:02,000\n\xe9t\xe9", "must be UTF-8 text"),
        (b"1" * (8 << 20) + b"1", "at most 8388608 bytes, got more"),
        (b"0:1,0 --> 0:2,0\nx\n\n" * (MAX_CUES + 1), f"at most {MAX_CUES} cues"),
        (b"99999999:00:01,000 --> 00:00:02,000\nx", "must hold cues"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"said\.srt.*{message}"):
        _load(tmp_path, content)


def test_hostile_lines_take_no_time(tmp_path: Path) -> None:
    """A megabyte in one line: of blanks before an arrow, of opening brackets, of digits, of one cue's words."""
    timing = b"00:00:01,000 --> 00:00:02,000\n"
    for line in (b" " * (1 << 20) + b"-->", b"<" * (1 << 20), b"1" * (1 << 20) + b"-->", b"{\\" * (1 << 19)):
        started = time.perf_counter()
        assert _load(tmp_path, line + b"\n\n" + timing + b"words" + b"\n" + line)[0][:2] == (1.0, 2.0)
        assert time.perf_counter() - started < 2
    assert len(_load(tmp_path, timing + b"x" * (1 << 20))[0][2]) == MAX_CUE_CHARACTERS
    assert _load(tmp_path, timing + b"a\x00b\x1bc")[0][2] == "a b c"
