"""Result files: the old one or the new one, never half of one."""

import os
from pathlib import Path
from typing import Any

import pytest

from zoomzero.files import check_writable, write_whole
from zoomzero.text import escaped


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.txt"
    assert write_whole(target, "Wört\r\n\ud800") == target
    assert target.read_bytes() == "Wört\r\n\\ud800".encode()
    write_whole(target, b"\xff")
    assert target.read_bytes() == b"\xff"
    assert [file.name for file in target.parent.iterdir()] == ["file.txt"]
    # As readable as any file made here.
    (tmp_path / "plain").write_text("")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_whole(tmp_path / "file.txt", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device: .*file\.txt"):
        write_whole(target, "new" * 1000)
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_names_of_any_length_and_places_that_cannot_be_written(tmp_path: Path) -> None:
    assert write_whole(tmp_path / ("n" * 255), "x").read_text() == "x"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written: .*file/below\.json"):
        write_whole(tmp_path / "file" / "below.json", "x")
    with pytest.raises(OSError, match="cannot be written: "):
        write_whole(tmp_path / ("n" * 256), "x")


@pytest.mark.parametrize(("text", "shown"), [("a\ud800b", "a\\ud800b"), ("\U0001f415", "\U0001f415"), ("", "")])
def test_lone_surrogates_are_written_out(text: str, shown: Any) -> None:
    assert escaped(text) == shown


def test_places_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "figures.json")
    assert list((tmp_path / "deep").iterdir()) == []
    with pytest.raises(OSError, match=r"cannot be written: it is a folder: .*deep"):
        check_writable(tmp_path / "deep")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written: "):
        check_writable(tmp_path / "file" / "below.json")
