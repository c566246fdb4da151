"""Segments decoded side by side give the frames that reading one after the other gives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.video_files import ClipSpec, numbers_in, write_clip, write_numbers

from zoomzero.video import open_video
from zoomzero.video.frame_reader import FrameReader
from zoomzero.video.segments import SegmentReader

VP9 = {"deadline": "realtime", "cpu-used": "8"}
OPEN_X264 = {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0"}
OPEN_X265 = {"x265-params": "log-level=none:open-gop=1:keyint=20:min-keyint=20"}


@pytest.fixture
def from_segments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the frames that segments gave."""
    given: list[int] = []
    take = SegmentReader.take

    def counted(self: SegmentReader, pts: int) -> object:
        frame = take(self, pts)
        given.extend([pts] if frame is not None else [])
        return frame

    monkeypatch.setattr(SegmentReader, "take", counted)
    return given


@pytest.mark.parametrize(
    ("name", "codec", "options", "b_frames"),
    [
        ("a.mp4", "libx264", {}, 3),
        ("a.mkv", "libx264", OPEN_X264, 3),
        ("a.ts", "libx264", OPEN_X264, 3),
        ("a.ts", "libx265", OPEN_X265, 3),
        ("a.mp4", "libx265", OPEN_X265, 3),
        ("a.flv", "libx264", {}, 2),
        ("a.webm", "libvpx-vp9", VP9, 0),
        ("a.webm", "libvpx", {}, 0),
        ("a.mkv", "mpeg2video", {}, 2),
    ],
)
def test_the_frames_of_reading_one_after_the_other(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], b_frames: int, from_segments: list[int]
) -> None:
    path = write_numbers(tmp_path / name, codec, range(160), gop=20, b_frames=b_frames, options=options)
    with open_video(path, num_threads=3) as video, open_video(path, num_threads=1) as alone:
        keys = video.timestamps[np.isin(video.table.pts, video.table.key_pts)]
        assert len(keys) >= 8
        # Key frames alone; one in between; neighbours of key frames, leading pictures among them; every fourth frame.
        sparse = video.timestamps[[7, 58, 99, 100, 138]]
        around = np.unique(np.concatenate([video.timestamps[[19, 38, 39, 59, 79, 98, 159]], keys]))
        for plan in (keys, sparse, around, video.timestamps[::4]):
            from_segments.clear()
            got = torch.cat([frames for frames, _ in video.stream(plan, chunk=3)])
            assert len(from_segments) == len(plan)
            truth, starts = alone.frames_at(plan)
            assert len(from_segments) == len(plan)
            assert torch.equal(got, truth)
            assert numbers_in(got) == np.searchsorted(video.timestamps, starts).tolist()
        # Back again, and frames nobody planned.
        assert numbers_in(video.frames_at(video.timestamps[[121, 3, 60]])[0]) == [121, 3, 60]


def test_damage_is_left_to_reading_one_after_the_other(tmp_path: Path, from_segments: list[int]) -> None:
    def zeros(index: int, packet: object) -> None:
        if 60 <= index < 100:
            packet.update(bytes(packet.size))  # type: ignore[attr-defined]

    path = write_numbers(tmp_path / "hole.mkv", "libx264", range(200), gop=20, change=zeros)
    with open_video(path, num_threads=2) as video, open_video(path, num_threads=1) as alone:
        plan = np.arange(0, 6.6, 0.6)
        frames, starts = video.frames_at(plan)
        truth, true_starts = alone.frames_at(plan)
        assert starts.tolist() == true_starts.tolist()
        assert torch.equal(frames, truth)
        assert 4 <= len(from_segments) < len(plan)
        assert video.damage == alone.damage


def test_key_frames_cost_one_packet_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path, ClipSpec("keys.mp4", num_frames=300, gop=30, options={"x264-params": "scenecut=0"}))
    decoded: list[int] = []
    decode = SegmentReader._decode

    def counted(self: SegmentReader, packets: list[object], wanted: frozenset[int]) -> object:
        decoded.append(len(packets))
        return decode(self, packets, wanted)  # type: ignore[arg-type]

    with open_video(path, num_threads=2) as video:
        monkeypatch.setattr(SegmentReader, "_decode", counted)
        monkeypatch.setattr(FrameReader, "_decoded", lambda *_: pytest.fail("one after the other"))
        assert numbers_in(video.frames_at(np.arange(10))[0]) == list(range(0, 300, 30))
    assert decoded == [1] * 10


def test_a_fork_in_the_middle_of_a_plan(tmp_path: Path, from_segments: list[int]) -> None:
    path = write_clip(tmp_path, ClipSpec("fork.mp4", num_frames=300, gop=30))
    with open_video(path, num_threads=2) as video:
        stream = video.stream(np.arange(10), chunk=1)
        assert numbers_in(next(stream)[0]) == [0]
        child = os.fork()
        if not child:
            status = 2
            try:
                status = int(numbers_in(video.frames_at([1.0, 5.0, 8.5])[0]) != [30, 150, 255])
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [numbers_in(frames)[0] for frames, _ in stream] == list(range(30, 300, 30))
    assert len(from_segments) == 10
