"""Bad files: each gives an error that names the file and the cause, or what is left of it, and never made-up frames."""

from __future__ import annotations

import logging
import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.video_files import ClipSpec, numbers_in, write_audio_only, write_clip

from zoomzero.video import VideoError, open_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad_files")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return write_clip(folder, ClipSpec("plain.mp4", b_frames=2, num_frames=120))


def test_file_that_is_no_video(tmp_path: Path, plain: Path) -> None:
    empty, text, playlist = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "list.mp4"
    empty.touch()
    text.write_text("not a film\n" * 200)
    playlist.write_text(f"ffconcat version 1.0\nfile '{plain}'\n")
    hls = tmp_path / "hls.m3u8"
    hls.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{plain}\n#EXT-X-ENDLIST\n")
    cases: list[tuple[Path, str]] = [
        (tmp_path / "missing.mp4", "no such file"),
        (tmp_path, "is a directory"),
        (empty, "empty file: 0 bytes"),
        (text, "not a video file"),
        (playlist, "not a video file|cannot be read"),
        (hls, "not a video file|cannot be read"),
        (write_audio_only(tmp_path / "audio.mp4"), r"no video stream \(found audio\)"),
        (Path("/dev/null"), "not a regular file"),
    ]
    for path, reason in cases:
        with pytest.raises(VideoError, match=reason) as caught:
            open_video(path)
        assert caught.value.path == str(path)
        assert str(path) in str(caught.value)
    with pytest.raises(VideoError, match="<bytes>: empty"):
        open_video(b"")
    with pytest.raises(VideoError, match="no such file"):
        open_video("http://127.0.0.1/clip.mp4")


def test_containers_without_a_frame_to_show(tmp_path: Path) -> None:
    none, broken = tmp_path / "none.mkv", tmp_path / "broken.mkv"
    for path, packets in ((none, 0), (broken, 5)):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuvj420p"
            container.start_encoding()
            for number in range(packets):
                packet = av.Packet(b"\0" * 100)
                packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number * 100, number * 100, True
                container.mux(packet)
    with pytest.raises(VideoError, match=r"none\.mkv: ends before the first frame"):
        open_video(none)
    with pytest.raises(VideoError, match=r"broken\.mkv: (no frame could be decoded|no decoder|.* pixels)"):
        open_video(broken)


def test_unreadable_file(tmp_path: Path, plain: Path) -> None:
    locked = tmp_path / "locked.mp4"
    locked.write_bytes(plain.read_bytes())
    locked.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        # Root reads every file; nobody does not.
        os.seteuid(65534)
    try:
        with pytest.raises(VideoError, match=r"locked\.mp4: permission denied"):
            open_video(locked)
    finally:
        if is_root:
            os.seteuid(0)


def test_absurd_dimensions(plain: Path) -> None:
    with pytest.raises(VideoError, match=r"128 x 64 pixels are more than max_pixels=4096"):
        open_video(plain, max_pixels=4096)


def faststart(path: Path, target: Path) -> Path:
    """The same packets with the index in front, as files made for streaming have it."""
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return target


def test_truncated_file_keeps_what_decodes_and_says_how_much(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = faststart(write_clip(folder, ClipSpec("whole.mp4", num_frames=200)), tmp_path / "whole.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    with caplog.at_level(logging.WARNING), open_video(cut) as video:
        assert 20 < video.num_frames < 200
        assert video.damage is not None
        assert "of 200 frames are there" in video.damage
        assert video.damage in caplog.text
        frames, _ = video.frames_at(video.timestamps)
        assert numbers_in(frames) == list(range(video.num_frames))
        assert video.duration == pytest.approx(video.num_frames / 30)


def test_recording_without_its_index(tmp_path: Path, plain: Path) -> None:
    cut = tmp_path / "no_index.mp4"
    cut.write_bytes(plain.read_bytes()[:3000])
    with pytest.raises(VideoError, match=r"no index \(moov box\)"):
        open_video(cut)


def test_frames_that_do_not_decode_are_not_made_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Zeroed pictures in a motion JPEG: each is lost alone, and an older frame stands in for a second at most."""
    path = tmp_path / "jpeg.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(2))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuvj420p"
        for number in range(20):
            pixels = np.full((64, 128, 3), number * 10, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            for packet in stream.encode(frame):
                if 6 <= number < 12:
                    damaged = av.Packet(b"\0" * packet.size)
                    damaged.pts, damaged.dts, damaged.time_base = packet.pts, packet.dts, packet.time_base
                    damaged.stream = stream
                    damaged.is_keyframe = True
                    packet = damaged
                container.mux(packet)
    with caplog.at_level(logging.WARNING), open_video(path) as video:
        frames, starts = video.frames_at([2.0, 3.0, 3.5, 6.0])
        assert starts.tolist() == pytest.approx([2.0, 2.5, 2.5, 6.0])
        assert frames.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([40, 50, 50, 120], abs=3)
        assert "does not decode; showing the one at 2.500 s" in caplog.text
        with pytest.raises(VideoError, match=r"the frame at 5\.000 s cannot be decoded"):
            video.frames_at([5.0])


def test_video_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "broken", "a.mp4: broken")
