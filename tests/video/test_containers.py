"""Containers and streams that readers get wrong in time or order: each gives the frames that its writer put in."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image
from support.video_files import HEIGHT, WIDTH, number_in, numbered_frame, numbers_in, write_numbers, write_pictures

from zoomzero.video import VideoError, open_video

VP9 = {"deadline": "realtime", "cpu-used": "8"}
X265 = {"x265-params": "log-level=none"}
Mux = Callable[[av.container.OutputContainer, av.Packet], None]


def check(path: Path, numbers: list[int], times: list[float] | None = None) -> None:
    """In order, and each of some far ones from a fresh reader; no damage is said."""
    with open_video(path) as video:
        assert numbers_in(video.frames_at(video.timestamps)[0]) == numbers
        assert video.damage is None
        if times is not None:
            assert video.timestamps.tolist() == pytest.approx(times, abs=0.002)
        stamps = video.timestamps
    for index in {len(numbers) - 1, len(numbers) // 2, len(numbers) // 3}:
        with open_video(path) as video:
            assert number_in(video.frames_at([stamps[index]])[0][0]) == numbers[index]


def write_muxed(
    path: Path,
    mux: Mux = lambda container, packet: container.mux(packet),
    *,
    numbers: range = range(60),
    container_options: dict[str, str] | None = None,
    b_frames: int = 2,
) -> Path:
    """H.264 whose packets go through `mux`."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size, stream.max_b_frames, stream.codec_context.thread_count = 20, b_frames, 1
        for number in numbers:
            for packet in stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number))):
                mux(container, packet)
        for packet in stream.encode():
            mux(container, packet)
    return path


def moved(seconds: Fraction) -> Mux:
    def mux(container: av.container.OutputContainer, packet: av.Packet) -> None:
        offset = int(seconds / packet.time_base)
        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
        container.mux(packet)

    return mux


# -- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "first"), [("n.mkv", 0), ("n.mp4", 15), ("n.ts", 0)])
def test_a_clock_that_begins_below_zero(tmp_path: Path, name: str, first: int) -> None:
    """An mp4's edit list cuts what is before time 0; other containers show it."""
    path = write_muxed(tmp_path / name, moved(Fraction(-1, 2)), container_options={"avoid_negative_ts": "disabled"})
    check(path, list(range(first, 60)))


def test_a_transport_streams_clock_that_wraps_around(tmp_path: Path) -> None:
    options = {"avoid_negative_ts": "disabled", "mpegts_copyts": "1"}
    path = write_muxed(tmp_path / "wrap.ts", moved(Fraction(2**33, 90000) - 1), container_options=options)
    check(path, list(range(60)), [i / 30 for i in range(60)])


@pytest.mark.parametrize(("codec", "b_frames"), [("mpeg2video", 2), ("mpeg1video", 2), ("libx264", 2)])
def test_program_streams_far_from_their_start(tmp_path: Path, codec: str, b_frames: int) -> None:
    """A pack holds many frames and the time of one; after a seek the demuxer makes up other times for the rest."""
    path = write_numbers(tmp_path / "film.mpg", codec, range(160), gop=20, b_frames=b_frames)
    check(path, list(range(160)))
    for plan in ([155, 12], [40, 80, 120], [59, 60, 61, 139]):
        with open_video(path) as video:
            assert video.table.oddity is None
            assert numbers_in(video.frames_at(video.timestamps[plan])[0]) == plan


def test_uneven_steps_without_durations(tmp_path: Path) -> None:
    steps = np.random.default_rng(1).integers(1, 5, 60)
    ticks = [0, *np.cumsum(steps)[:-1].tolist()]

    def uneven(index: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = ticks[index]
        packet.duration = 0

    path = write_numbers(tmp_path / "uneven.mkv", "libx264", range(60), change=uneven)
    check(path, list(range(60)), [tick / 30 for tick in ticks])


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(1, 2), Fraction(240)])
def test_unusual_rates(tmp_path: Path, rate: Fraction) -> None:
    path = write_numbers(tmp_path / "rate.mp4", "libx264", range(40), rate=rate)
    check(path, list(range(40)), [i / float(rate) for i in range(40)])


# -- order and starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("field.mp4", "libx264", {"x264-params": "interlaced=1"}),
        ("field.ts", "libx264", {"x264-params": "tff=1"}),
        ("field.ts", "mpeg2video", {"flags": "+ildct+ilme"}),
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}),
        ("refresh.ts", "libx264", {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}),
        ("pyramid.ts", "libx264", {"x264-params": "open-gop=1:keyint=20:scenecut=0:b-pyramid=normal:bframes=3"}),
        ("plain.mp4", "libsvtav1", {"preset": "12"}),
    ],
)
def test_interlaced_refreshed_and_reordered(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    b_frames = 0 if codec == "libsvtav1" else 2
    check(write_numbers(tmp_path / name, codec, range(60), b_frames=b_frames, options=options), list(range(60)))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("raw.h264", "libx264", {}),
        ("raw.hevc", "libx265", X265),
        ("raw.m2v", "mpeg2video", {}),
        ("raw.m4v", "mpeg4", {}),
        ("raw.ivf", "libvpx", {}),
    ],
)
def test_streams_without_a_container(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    b_frames = 2 if codec in ("libx264", "libx265") else 0
    check(write_numbers(tmp_path / name, codec, range(60), b_frames=b_frames, options=options), list(range(60)))


def test_avi_with_packed_b_frames(tmp_path: Path) -> None:
    """DivX: a B frame lies in the packet of the frame before it, and an empty packet stands in its place."""
    source = write_numbers(tmp_path / "plain.mkv", "mpeg4", range(60), gop=20, b_frames=1)
    start = b"\0\0\1\xb6"
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        header = bytes(stream.codec_context.extradata or b"") + b"\0\0\1\xb2DivX503b1393p"
        plain = [bytes(packet) for packet in container.demux(stream) if packet.size]
    kinds = [data[data.find(start) + 4] >> 6 for data in plain]
    packed: list[bytes] = []
    for index, data in enumerate(plain):
        if kinds[index] == 2:
            packed[-1] += data
            packed.append(start + b"\x51\x70\x7f")
        else:
            packed.append(data)
    assert kinds.count(2) > 20
    path = tmp_path / "packed.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.extradata = header
        for index, data in enumerate(packed):
            packet = av.Packet(header + data if index == 0 else data)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 30), index, index
            packet.is_keyframe = kinds[index] == 0
            container.mux(packet)
    check(path, list(range(60)))


@pytest.mark.parametrize(
    ("name", "codec", "options", "pixels"),
    [
        ("one.mp4", "libx264", {}, "yuv420p"),
        ("one.ts", "libx264", {}, "yuv420p"),
        ("one.flv", "libx264", {}, "yuv420p"),
        ("one.h264", "libx264", {}, "yuv420p"),
        ("one.mpg", "mpeg2video", {}, "yuv420p"),
        ("one.webm", "libvpx-vp9", VP9, "yuv420p"),
        ("one.gif", "gif", {}, "rgb8"),
    ],
)
def test_one_frame(tmp_path: Path, name: str, codec: str, options: dict[str, str], pixels: str) -> None:
    path = write_numbers(tmp_path / name, codec, [77], options=options, pixel_format=pixels)
    check(path, [77])
    with open_video(path) as video:
        assert 0.02 <= video.duration <= 0.1


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cover.mp4", "cover.mkv"])
def test_a_cover_picture_as_the_first_stream(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        cover, film = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=30)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", Disposition.attached_pic
        film.width, film.height, film.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        grey = np.full((64, 64, 3), 200, np.uint8)
        container.mux([*cover.encode(av.VideoFrame.from_ndarray(grey)), *cover.encode()])
        for number in range(60):
            container.mux(film.encode(av.VideoFrame.from_ndarray(numbered_frame(number))))
        container.mux(film.encode())
    check(path, list(range(60)))


def test_sound_longer_than_the_film(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        film, sound = container.add_stream("libx264", rate=30), container.add_stream("aac", rate=16000)
        film.width, film.height, film.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(60):
            container.mux(film.encode(av.VideoFrame.from_ndarray(numbered_frame(number))))
        container.mux(film.encode())
        for block in range(160):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, block * 1024
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    check(path, list(range(60)))
    with open_video(path) as video:
        assert video.duration == pytest.approx(2.0)


def test_fragments(tmp_path: Path) -> None:
    path = write_muxed(
        tmp_path / "parts.mp4",
        numbers=range(90),
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    )
    check(path, list(range(90)), [i / 30 for i in range(90)])


# -- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "options"),
    [
        ("deep.mp4", "libx264", "yuv420p10le", {}),
        ("full.mp4", "libx264", "yuv444p", {}),
        ("deep.mkv", "libx265", "yuv420p12le", X265),
        ("deep.mp4", "libsvtav1", "yuv420p10le", {"preset": "12"}),
        ("deep.mkv", "ffv1", "yuv444p16le", {}),
        ("deep.mkv", "ffv1", "gbrp10le", {}),
        ("full.mov", "prores_ks", "yuv422p10le", {}),
        ("range.mp4", "libx264", "yuvj420p", {}),
        ("plain.avi", "rawvideo", "bgr24", {}),
        ("grey.mkv", "ffv1", "gray16le", {}),
    ],
)
def test_depths_and_samplings(tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str]) -> None:
    picture = np.repeat(np.linspace(10, 240, WIDTH).astype(np.uint8)[None, :, None], HEIGHT, 0).repeat(3, 2)
    if not name.startswith("grey"):
        picture[:, :42], picture[:, 84:] = (200, 30, 30), (30, 30, 200)
    path = write_pictures(tmp_path / name, codec, [picture] * 5, pixel_format=pixels, options=options)
    with open_video(path) as video:
        assert not video.is_hdr
        for frame in video.frames_at([0.0, 0.1])[0]:
            assert (frame.float() - torch.from_numpy(picture).float()).abs().mean() < 5


def test_a_turned_picture_of_oblong_pixels(tmp_path: Path) -> None:
    """Pixels are made square first: coded 64x128 with pixels of 2:1 is 64x256, turned 256x64."""
    path = tmp_path / "turned.mp4"
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64], picture[:32, 64:], picture[32:, :64] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    with open_video(path) as video:
        shown = video.frames_at([0.0])[0][0]
    assert shown.shape == (256, 64, 3)
    corners = [shown[64, 16], shown[64, 48], shown[192, 16], shown[192, 48]]
    # A quarter turn against the clock.
    assert [int(corner.argmax()) if corner.max() > 128 else None for corner in corners] == [1, None, 0, 2]


# -- pictures and joined files ---------------------------------------------------------------------------------------


def test_animated_pictures_are_videos_and_stills_are_refused(tmp_path: Path) -> None:
    images = [Image.fromarray(numbered_frame(number)) for number in range(12)]
    for name in ("film.gif", "film.png"):
        path = tmp_path / name
        images[0].save(path, save_all=True, append_images=images[1:], duration=100, loop=0)
        check(path, list(range(12)), [i / 10 for i in range(12)])
    for kind in ("JPEG", "PNG", "WebP", "TIFF", "BMP"):
        path = tmp_path / f"still.{kind.lower()}"
        images[0].save(path)
        with pytest.raises(VideoError, match=rf"still\.{kind.lower()}: a picture \({kind}\), not a video"):
            open_video(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flv", "libx264"), ("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.asf", "wmv2")]
)
def test_a_second_recording_that_is_not_read_is_named(tmp_path: Path, name: str, codec: str) -> None:
    parts = [write_numbers(tmp_path / f"{i}{name}", codec, range(100 * i, 100 * i + 60)) for i in range(2)]
    path = tmp_path / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    whole = parts[0].stat().st_size
    for source in (path, path.read_bytes(), path.open("rb")):
        with open_video(source) as video:
            assert numbers_in(video.frames_at([0.5, 1.9])[0]) == [15, 57]
            assert video.damage is not None
            at = int(video.damage.removeprefix("another recording begins at byte ").removesuffix(", unread"))
            assert whole <= at < path.stat().st_size
    for part in parts:
        with open_video(part) as video:
            assert video.damage is None
