"""Kinds of files that readers get wrong: each gives the frames a player shows, and says what is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from support.video_files import (
    HEIGHT,
    WIDTH,
    number_in,
    numbered_frame,
    numbers_in,
    write_numbers,
)

from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.memory import DecodedVideo

VP9 = {"deadline": "realtime", "cpu-used": "8"}
X265 = {"x265-params": "log-level=none"}
OPEN_X265 = {"x265-params": "log-level=none:open-gop=1:keyint=20:min-keyint=20"}
OPEN_X264 = {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0"}


def check_every_way(video: Video, numbers: list[int]) -> None:
    """In order, one by one from far to near, and out of memory."""
    assert video.num_frames == len(numbers)
    assert numbers_in(video.frames_at(video.timestamps)[0]) == numbers
    for index in (len(numbers) - 1, 0, len(numbers) // 2, len(numbers) // 3):
        assert number_in(video.frames_at([video.timestamps[index]])[0][0]) == numbers[index]


# -- frames that cannot be decoded -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options", "b_frames"),
    [
        ("lost.ts", "libx264", {}, 2),
        ("lost.mkv", "libx264", {}, 0),
        ("lost.mp4", "libx264", {}, 0),
        ("lost.flv", "libx264", {}, 0),
        ("lost.ts", "libx265", X265, 2),
        ("lost.mkv", "libx265", X265, 2),
        ("lost.mpg", "mpeg2video", {}, 2),
        ("lost.mkv", "mpeg4", {}, 2),
        ("lost.avi", "mpeg4", {}, 0),
        ("lost.webm", "libvpx-vp9", VP9, 0),
        ("lost.webm", "libvpx", {}, 0),
    ],
)
def test_a_lost_start_begins_at_the_first_key_frame(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], b_frames: int
) -> None:
    path = write_numbers(
        tmp_path / name, codec, range(90), b_frames=b_frames, options=options, keep=lambda i, _: i >= 10
    )
    with open_video(path) as video:
        check_every_way(video, list(range(30, 90)))
        assert video.duration == pytest.approx(2.0, abs=0.01)
        assert video.damage is not None
        assert "20 frames at the start cannot be decoded" in video.damage


@pytest.mark.parametrize("name", ["open.ts", "open.mkv", "open.mp4"])
@pytest.mark.parametrize(("codec", "options"), [("libx264", OPEN_X264), ("libx265", OPEN_X265), ("mpeg2video", {})])
def test_open_groups_cut_by_stream_copy(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    seen = 0

    def from_second_key(_: int, packet: av.Packet) -> bool:
        nonlocal seen
        seen += packet.is_keyframe
        return seen >= 2

    path = write_numbers(tmp_path / name, codec, range(60), gop=20, b_frames=3, options=options, keep=from_second_key)
    with open_video(path) as video:
        check_every_way(video, list(range(20, 60)))
        assert video.duration == pytest.approx(40 / 30, abs=0.01)


# -- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options", "b_frames"),
    [
        ("part.ts", "libx264", {}, 0),
        ("part.ts", "libx264", {}, 2),
        ("part.ts", "libx265", X265, 2),
        ("part.ts", "mpeg4", {}, 0),
        ("part.mpg", "mpeg2video", {}, 2),
    ],
)
def test_a_clock_that_restarts_goes_on(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], b_frames: int
) -> None:
    parts = [
        write_numbers(tmp_path / f"{i}{name}", codec, range(100 * i, 100 * i + 60), b_frames=b_frames, options=options)
        for i in range(3)
    ]
    path = tmp_path / f"joined{parts[0].suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path) as video, open_video(path, time_limit=60) as guarded:
        check_every_way(video, [100 * i + j for i in range(3) for j in range(60)])
        assert video.duration == pytest.approx(6.0, abs=0.01)
        assert video.damage is not None
        assert "the clock restarts at 2.000 s, 4.000 s" in video.damage
        assert guarded.damage == video.damage
        assert numbers_in(guarded.frames_at([5.5, 0.5, 3.0])[0]) == [245, 15, 130]
        # There and back again, in parts.
        streams = [video.stream([0.5, 2.5, 4.5], chunk=1), video.stream([1.5, 3.5, 5.5], chunk=1)]
        seen = [numbers_in(next(streams[which])[0])[0] for which in (0, 1, 1, 0, 1, 0)]
        assert seen == [15, 45, 145, 115, 245, 215]


def test_parts_that_begin_in_the_middle_of_a_group(tmp_path: Path) -> None:
    first = write_numbers(tmp_path / "a.ts", "libx265", range(60), b_frames=3, options=OPEN_X265)
    second = write_numbers(
        tmp_path / "b.ts", "libx265", range(100, 160), gop=20, b_frames=3, options=OPEN_X265, keep=lambda i, _: i >= 5
    )
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with open_video(path) as video:
        check_every_way(video, [*range(60), *range(120, 160)])
        assert video.damage is not None
        assert "at the start of its parts cannot be decoded" in video.damage


@pytest.mark.parametrize("name", ["last.mkv", "last.mp4", "last.webm"])
@pytest.mark.parametrize("claim", [3600, 30, 0])
def test_a_last_duration_beyond_the_usual_is_not_believed(tmp_path: Path, name: str, claim: int) -> None:
    def lasting(index: int, packet: av.Packet) -> None:
        if index == 59:
            packet.duration = int(claim / packet.time_base)

    codec, options = ("libvpx-vp9", VP9) if name.endswith("webm") else ("libx264", {})
    with open_video(write_numbers(tmp_path / name, codec, range(60), options=options, change=lasting)) as video:
        assert video.duration == pytest.approx(2.0, abs=0.01)
        assert video.damage is None


def test_a_last_frame_as_long_as_others_is_believed(tmp_path: Path) -> None:
    def slides(index: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = packet.pts * (1 + 3 * (index > 5))
        packet.duration = round(Fraction(4, 30) / packet.time_base)

    with open_video(write_numbers(tmp_path / "slides.mkv", "mjpeg", range(10), change=slides)) as video:
        assert video.duration == pytest.approx((4 * 9 + 4) / 30, abs=0.01)


@pytest.mark.parametrize("gap", [61, 59])
def test_a_gap_of_more_than_a_minute_is_named(tmp_path: Path, gap: int) -> None:
    def later(index: int, packet: av.Packet) -> None:
        if index >= 30:
            shift = round(Fraction(gap) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift

    with open_video(write_numbers(tmp_path / "gap.mkv", "libx264", range(60), change=later)) as video:
        check_every_way(video, list(range(60)))
        assert (video.damage or "") == ("no frames from 0.967 to 62.000 s" if gap > 60 else "")


# -- streams ---------------------------------------------------------------------------------------------------------


def write_two_streams(path: Path, codec: str, options: dict[str, str]) -> Path:
    """A still picture as an ordinary first stream, the film second and default."""
    with av.open(str(path), "w") as container:
        poster, film = (container.add_stream(codec, rate=rate, options=dict(options)) for rate in (1, 30))
        for stream, (width, height) in ((poster, (64, 64)), (film, (WIDTH, HEIGHT))):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        film.disposition = Disposition.default
        grey = np.full((64, 64, 3), 200, dtype=np.uint8)
        for packet in [*poster.encode(av.VideoFrame.from_ndarray(grey)), *poster.encode()]:
            container.mux(packet)
        for number in range(60):
            container.mux(film.encode(av.VideoFrame.from_ndarray(numbered_frame(number))))
        container.mux(film.encode())
    return path


@pytest.mark.parametrize(("name", "codec", "options"), [("two.mkv", "libx264", {}), ("two.webm", "libvpx-vp9", VP9)])
def test_the_stream_that_players_choose(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_two_streams(tmp_path / name, codec, options)
    with open_video(path, backend="pyav") as video:
        check_every_way(video, list(range(60)))


def test_dali_reads_the_same_stream(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs nvidia-dali-cuda130")
    path = write_two_streams(tmp_path / "two.webm", "libvpx-vp9", VP9)
    with open_video(path, backend="dali", device="cpu") as video:
        assert numbers_in(video.frames_at([0.5, 1.5])[0]) == [15, 45]


# -- key frame flags -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("flags.mp4", "mpeg4", {}),
        ("flags.mkv", "mpeg4", {}),
        ("flags.avi", "mpeg4", {}),
        ("flags.mp4", "libx264", {}),
        ("flags.mkv", "libx264", {}),
        ("flags.mp4", "libx265", X265),
        ("flags.mkv", "mpeg2video", {}),
        ("flags.webm", "libvpx-vp9", VP9),
        ("flags.webm", "libvpx", {}),
        ("flags.avi", "msmpeg4", {}),
        ("flags.flv", "flv", {}),
    ],
)
def test_key_frame_flags_that_lie(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    def flag(_: int, packet: av.Packet) -> None:
        packet.is_keyframe = True

    path = write_numbers(tmp_path / name, codec, range(90), gop=90, options=options, change=flag)
    with open_video(path) as video:
        for index in (45, 75, 20, 89):
            assert numbers_in(video.frames_at([video.timestamps[index]])[0]) == [index]
        check_every_way(video, list(range(90)))


# -- damage ----------------------------------------------------------------------------------------------------------


def write_with_hole(path: Path) -> Path:
    """Motion JPEG whose frames 90 to 149 are zeros."""

    def zeros(index: int, packet: av.Packet) -> None:
        if 90 <= index < 150:
            packet.update(bytes(packet.size))

    return write_numbers(path, "mjpeg", range(300), change=zeros)


@pytest.mark.parametrize("way", ["own", "guarded", "memory"])
def test_damaged_seconds_cost_their_own_frames_only(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write_with_hole(tmp_path / "hole.mkv")
    caplog.set_level(logging.WARNING)
    opened = open_video(path, time_limit=60 if way == "guarded" else None)
    with opened if way != "memory" else DecodedVideo(opened) as video:
        # A plan over the whole file: what a player keeps showing stands for the frames that are lost.
        seconds = np.arange(0, 10, 0.5)
        frames, starts = video.frames_at(seconds)
        numbers = [round(30 * t) for t in starts]
        assert numbers_in(frames) == numbers
        assert numbers[:6] == [0, 15, 30, 45, 60, 75]
        # The last frame before the damage stands in.
        assert numbers[6:10] == [89, 89, 89, 89]
        assert numbers[10:] == [150 + 15 * i for i in range(10)]
        streamed = [(numbers_in(chunk), times) for chunk, times in video.stream(seconds, chunk=2)]
        assert [n for chunk, _ in streamed for n in chunk] == numbers
        # Nothing but lost frames is asked for.
        with pytest.raises(VideoError, match=r"the frame at 4\.500 s cannot be decoded"):
            video.frames_at([4.5])
        with pytest.raises(VideoError, match="nor can any other of those asked for"):
            video.frames_at([4.5, 4.6])
        assert video.damage is not None
        assert "of the frames asked for" in video.damage
    assert "does not decode; showing the one at" in caplog.text


def test_a_plan_that_begins_in_the_damage(tmp_path: Path) -> None:
    path = write_with_hole(tmp_path / "hole.mkv")
    with open_video(path) as video:
        chunks = list(video.stream([4.2, 4.5, 4.8, 5.5], chunk=1))
        assert [numbers_in(frames)[0] for frames, _ in chunks] == [165] * 4
        assert [times.tolist() for _, times in chunks] == [[5.5]] * 4


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("hole.ts", "libx264", {}), ("hole.mkv", "libx265", X265), ("hole.avi", "mjpeg", {}), ("hole.avi", "mpeg4", {})],
)
def test_zeros_in_the_middle_of_a_file(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_numbers(tmp_path / name, codec, range(300), options=options)
    data = bytearray(path.read_bytes())
    first, end = int(len(data) * 0.4), int(len(data) * 0.45)
    data[first:end] = bytes(end - first)
    path.write_bytes(data)
    with open_video(path) as video:
        assert video.duration == pytest.approx(10.0, abs=0.05)
        for number in (0, 15, 60, 225, 240, 255, 299):
            assert numbers_in(video.frames_at([number / 30])[0]) == [number]
        frames, _ = video.frames_at(np.arange(0, 10, 1 / 3))
        assert numbers_in(frames)[:6] == list(range(0, 60, 10))
        assert numbers_in(frames)[-8:] == list(range(220, 300, 10))


def test_dali_leaves_to_pyav_what_it_would_number_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="needs nvidia-dali-cuda130")
    lost = write_numbers(tmp_path / "lost.webm", "libvpx-vp9", range(90), options=VP9, keep=lambda i, _: i >= 10)
    with pytest.raises(VideoError, match="DALI does not read it as players do: 20 frames at the start"):
        open_video(lost, backend="dali", device="cpu")


# -- addresses -------------------------------------------------------------------------------------------------------


def test_addresses_of_files_are_files(tmp_path: Path) -> None:
    folder = tmp_path / "a folder, 100 % mine"
    folder.mkdir()
    path = write_numbers(folder / "film #1.mp4", "libx264", range(30))
    assert "%20" in path.as_uri()
    addresses: list[Callable[[str], str]] = [
        lambda uri: uri,
        lambda uri: uri.replace("file://", "file://localhost"),
        lambda uri: uri.replace("file://", "FILE://"),
    ]
    for change in addresses:
        address = change(path.as_uri())
        for time_limit in (None, 60.0):
            with open_video(address, time_limit=time_limit) as video:
                assert numbers_in(video.frames_at([0.5])[0]) == [15]
                assert video.path == address
    with pytest.raises(VideoError, match=r"file:///no/such/film\.mp4: no such file"):
        open_video("file:///no/such/film.mp4")
    with pytest.raises(VideoError, match="names a file on the machine 'elsewhere', not on this one"):
        open_video("file://elsewhere/film.mp4")
