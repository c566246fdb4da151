"""The DALI back end: decoded for real on the CPU for the codecs it knows there; equal to PyAV frame by frame."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.video_files import ClipSpec, numbers_in, write_clip

from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.guarded import GuardedVideo
from zoomzero.video.pyav import PyAVVideo

pytest.importorskip("nvidia.dali", reason="needs nvidia-dali-cuda130")

VP9 = {"deadline": "realtime", "cpu-used": "8"}
HIDDEN_REFERENCES = {"auto-alt-ref": "1", "lag-in-frames": "16"}

# What DALI's own frame numbers could get wrong: hidden references, late start, variable rate, edit list, rotation.
CLIPS = [
    ClipSpec("vp9.webm", codec="libvpx-vp9", options=VP9),
    ClipSpec("vp9_hidden.webm", codec="libvpx-vp9", options=HIDDEN_REFERENCES),
    ClipSpec("vp8_hidden.webm", codec="libvpx", options=HIDDEN_REFERENCES),
    ClipSpec("late.mkv", start=5, codec="libvpx-vp9", options=VP9),
    ClipSpec("variable.mkv", vfr=True, codec="libvpx-vp9", options=VP9),
    ClipSpec("cut.mp4", preroll=17, codec="libvpx-vp9", options=VP9),
    ClipSpec("turned.mp4", rotation=90, codec="libvpx-vp9", options=VP9),
    ClipSpec("motion_jpeg.avi", codec="mjpeg", ticks_per_frame=1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dali")


@pytest.mark.parametrize("spec", CLIPS, ids=lambda spec: spec.name)
def test_frames_are_those_on_show(folder: Path, spec: ClipSpec) -> None:
    path = write_clip(folder, spec)
    rng = random.Random(1)
    with open_video(path, backend="dali", device="cpu") as video, open_video(path, backend="pyav") as exact:
        assert video.backend == "dali"
        assert video.timestamps.tolist() == exact.timestamps.tolist()
        for name in ("height", "width", "codec", "fps", "duration", "num_frames"):
            assert getattr(video, name) == getattr(exact, name)
        wanted = [rng.randrange(video.num_frames) for _ in range(50)]
        frames, starts = video.frames_at(video.timestamps[wanted] + 0.004)
        assert numbers_in(torch.rot90(frames, -spec.rotation // 90, (1, 2))) == [spec.preroll + i for i in wanted]
        assert starts.tolist() == video.timestamps[wanted].tolist()
        # The same picture up to the rounding of two colour converters.
        difference = (frames.int() - exact.frames_at(starts)[0].int()).abs()
        assert difference.max() <= 4


def test_streams_in_chunks(folder: Path) -> None:
    path = write_clip(folder, CLIPS[0])
    with open_video(path, backend="dali", device="cpu") as video:
        chunks = list(video.stream(np.arange(0, 3, 0.05), chunk=16))
        assert [len(frames) for frames, _ in chunks] == [16, 16, 16, 12]
        assert numbers_in(torch.cat([frames for frames, _ in chunks])) == [int(i * 1.5 + 1e-6) for i in range(60)]


def test_bytes_and_file_objects(folder: Path) -> None:
    path = write_clip(folder, CLIPS[0])
    with path.open("rb") as handle:
        for source in (path.read_bytes(), handle):
            with open_video(source, backend="dali", device="cpu") as video:
                assert numbers_in(video.frames_at([1.0])[0]) == [30]


def test_a_codec_beyond_the_device_names_codec_and_file(folder: Path) -> None:
    path = write_clip(folder, ClipSpec("h264.mp4"))
    with pytest.raises(VideoError, match=r"h264\.mp4: DALI cannot decode h264 on the cpu"):
        open_video(path, backend="dali", device="cpu")


# With a time limit, the process that opened the file goes on to decode it.
@pytest.mark.parametrize("time_limit", [None, 60.0])
def test_auto_falls_back_to_pyav_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, time_limit: float | None
) -> None:
    path = write_clip(folder, ClipSpec("fallback.mp4"))
    from zoomzero.video import dali

    original = dali.DaliVideo.__init__

    def on_the_cpu(self: dali.DaliVideo, source: Path, probe: PyAVVideo, device: torch.device) -> None:
        original(self, source, probe, torch.device("cpu"))

    monkeypatch.setattr(dali.DaliVideo, "__init__", on_the_cpu)
    caplog.set_level(logging.INFO, logger="zoomzero.video")
    with open_video(path, device="cuda", time_limit=time_limit) as video:
        assert video.backend == "pyav"
        assert isinstance(video, PyAVVideo if time_limit is None else GuardedVideo)
        assert numbers_in(video.frames_at([1.0])[0]) == [30]
    assert len(caplog.records) == 1
    assert "DALI cannot decode h264" in caplog.text


def test_a_time_limit_guards_the_opening_and_dali_decodes(folder: Path, tmp_path: Path) -> None:
    path = write_clip(folder, CLIPS[0])
    with open_video(path, backend="dali", device="cpu", time_limit=60) as video:
        assert video.backend == "dali"
        assert numbers_in(video.frames_at([2.0, 0.1])[0]) == [60, 3]
    text = tmp_path / "text.mp4"
    text.write_text("not a film\n" * 100)
    with pytest.raises(VideoError, match=r"text\.mp4: not a video file"):
        open_video(text, backend="dali", device="cpu", time_limit=60)
    with pytest.raises(VideoError, match="DALI cannot decode h264 on the cpu"):
        open_video(write_clip(folder, ClipSpec("guarded.mp4")), backend="dali", device="cpu", time_limit=60)


def test_without_a_gpu_auto_is_pyav(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with open_video(write_clip(folder, CLIPS[0])) as video:
        assert video.backend == "pyav"


def test_times_outside_never_reach_dali(folder: Path) -> None:
    video = open_video(write_clip(folder, CLIPS[0]), backend="dali", device="cpu")
    with video, pytest.raises(ValueError, match=r"seconds must be in \[0, 3\), got 3"):
        video.frames_at([3.0])


@pytest.mark.cuda
def test_gpu_decodes_h264_into_gpu_memory(folder: Path) -> None:
    path = write_clip(folder, ClipSpec("gpu.mp4", b_frames=2))
    with open_video(path, backend="dali", device="cuda") as video:
        check_gpu_frames(video)


def check_gpu_frames(video: Video) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        frames, _ = video.frames_at(video.timestamps)
        sums = frames.float().mean()
    stream.synchronize()
    assert frames.is_cuda
    assert sums > 0
    assert numbers_in(frames.cpu()) == list(range(video.num_frames))
