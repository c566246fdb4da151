"""Samples that are skipped: written down once, and an end when they are too many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoomzero.skipping import SkipLog
from zoomzero.video import VideoError


def test_skipped_samples_are_written_down_until_there_are_too_many(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "run" / "skipped.jsonl", num_samples=40)
    log.record("q1", VideoError("a.mp4", "empty file: 0 bytes"))
    log.record("q2", VideoError("ü.mp4", "no such file"))
    with pytest.raises(
        VideoError,
        match=r"c\.mp4: broken; 3 of 40 samples have no readable video, more than "
        r"max_skipped_fraction=0\.05 allows; see .*skipped\.jsonl",
    ):
        log.record("q3", VideoError("c.mp4", "broken"))
    lines = [json.loads(line) for line in log.file.read_text(encoding="utf-8").splitlines()]
    assert lines[1] == {"sample": "q2", "path": "ü.mp4", "reason": "no such file"}
    assert len(lines) == log.num_skipped == 3
    log.record("q3", VideoError("c.mp4", "broken"))  # seen already: neither counted nor written
    assert log.num_skipped == 3
    assert len(log.file.read_text(encoding="utf-8").splitlines()) == 3
    counting = SkipLog(None, 3, 0.5)
    counting.record("q", VideoError("a.mp4", "broken"))
    with pytest.raises(VideoError, match=r"2 of 3 samples have no readable video.*=0\.5 allows$"):
        counting.record("q", VideoError("b.mp4", "broken"))
    with pytest.raises(ValueError, match=r"max_skipped_fraction must be in \[0, 1\], got 5"):
        SkipLog(tmp_path / "x", 10, 5)
