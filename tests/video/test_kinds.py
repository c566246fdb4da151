"""Kinds of files that readers get wrong: each gives the frames a player shows, and says what is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from support.video_files import (
    HEIGHT,
    WIDTH,
    mux_copy,
    number_in,
    numbered_frame,
    numbers_in,
    write_numbers,
    write_pictures,
)

from zoomzero.video import Video, VideoError, open_video, tone_mapping
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


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec", "options"), [("size.ts", "libx264", {}), ("size.webm", "libvpx-vp9", VP9)])
@pytest.mark.parametrize("size", [(64, 64), (32, 128), (128, 128)])
def test_frames_of_another_size_are_letterboxed(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], size: tuple[int, int]
) -> None:
    height, width = size
    parts = [
        write_pictures(tmp_path / f"{i}{name}", codec, [np.full((*shape, 3), level, np.uint8)] * 30, options=options)
        for i, (shape, level) in enumerate([((64, 128), 90), (size, 220)])
    ]
    path = mux_copy(parts, tmp_path / name)
    scale = min(64 / height, 128 / width)
    inner_h, inner_w = round(height * scale), round(width * scale)
    top, left = (64 - inner_h) // 2, (128 - inner_w) // 2
    with open_video(path) as video:
        frames, _ = video.frames_at([0.5, 1.5])
        assert frames.shape == (2, 64, 128, 3)
        assert frames[0].float().mean() == pytest.approx(90, abs=4)
        inside = frames[1, top : top + inner_h, left : left + inner_w].float()
        assert inside.mean() == pytest.approx(220, abs=5)
        assert frames[1].float().sum() == pytest.approx(float(inside.sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("alpha.mov", "qtrle", "argb"),
        ("alpha.mov", "png", "rgba"),
        ("alpha.mkv", "ffv1", "bgra"),
        ("alpha.apng", "apng", "rgba"),
        ("alpha.mov", "prores_ks", "yuva444p10le"),
    ],
)
def test_transparency_is_composed_on_black(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    rgba = np.zeros((64, 128, 4), dtype=np.uint8)
    rgba[:, :, :3] = (200, 120, 40)
    rgba[:, :64, 3], rgba[:, 64:96, 3] = 255, 128
    path = write_pictures(tmp_path / name, codec, [rgba] * 5, pixel_format=pixels, source_format="rgba")
    with open_video(path) as video:
        shown = video.frames_at([0.0])[0][0].float()
    tolerance = 4 if codec == "prores_ks" else 1
    for columns, share in ((slice(2, 60), 1.0), (slice(68, 92), 128 / 255), (slice(100, 126), 0.0)):
        mean = shown[:, columns].mean(dim=(0, 1)).tolist()
        assert mean == pytest.approx([200 * share, 120 * share, 40 * share], abs=tolerance)


def write_ramp(path: Path, transfer: int) -> Path:
    """Ten-bit grey from black to white over 1024 columns, limited range, BT.2020."""
    frame = av.VideoFrame(1024, 64, "yuv420p10le")
    ramp = np.linspace(64, 940, 1024).round().astype(np.uint16)
    for number, plane in enumerate(frame.planes):
        values = np.frombuffer(plane, np.uint16).reshape(plane.height, plane.line_size // 2)  # type: ignore[call-overload]
        values[:, : plane.width] = ramp if number == 0 else 512
    frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
    with av.open(str(path), "w") as container:
        name = {16: "smpte2084", 18: "arib-std-b67", 1: "bt709"}[transfer]
        parameters = f"log-level=none:lossless=1:colorprim=bt2020:transfer={name}:colormatrix=bt2020nc"
        stream = container.add_stream("libx265", rate=10, options={"x265-params": parameters})
        stream.width, stream.height, stream.pix_fmt = 1024, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def bt2390(light: float) -> float:
    """The EETF of ITU-R BT.2390-8 from 1000 to 203 cd/m2, written out for one value."""

    def pq(nits: float) -> float:
        power = (nits / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375

    def nits(signal: float) -> float:
        power = signal ** (1 / 78.84375)
        return 10000 * (max(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)

    e1, most = min(pq(light) / pq(1000), 1), pq(203) / pq(1000)
    knee = 1.5 * most - 0.5
    if e1 >= knee:
        t = (e1 - knee) / (1 - knee)
        e1 = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return nits(e1 * pq(1000))


def grey_of(signal: float, transfer: int) -> float:
    """The grey level of a code value in [0, 1], by the formulas."""
    if transfer == 16:
        power = signal ** (1 / 78.84375)
        light = 10000 * (max(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    else:
        scene = signal**2 / 3 if signal <= 0.5 else (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = 1000 * float(scene) ** 1.2
    return 255 * float(min(bt2390(min(light, 1000)) / 203, 1)) ** (1 / 2.4)


@pytest.mark.parametrize("transfer", [tone_mapping.PQ, tone_mapping.HLG])
@pytest.mark.parametrize("time_limit", [None, 60.0])
def test_high_range_is_tone_mapped_by_its_formula(tmp_path: Path, transfer: int, time_limit: float | None) -> None:
    with open_video(write_ramp(tmp_path / "hdr.mkv", transfer), time_limit=time_limit) as video:
        assert video.is_hdr
        shown = video.frames_at([0.0])[0][0].float()
    expected = torch.tensor([grey_of(i / 1023, transfer) for i in range(1024)])
    assert (shown - expected[None, :, None]).abs().max() <= 3
    assert shown[:, -1].min() >= 252


def test_ordinary_range_is_left_alone(tmp_path: Path) -> None:
    with open_video(write_ramp(tmp_path / "sdr.mkv", 1)) as video:
        assert not video.is_hdr
        shown = video.frames_at([0.0])[0][0].float()
    assert (shown - torch.linspace(0, 255, 1024)[None, :, None]).abs().max() <= 3


def test_colours_of_high_range_become_bt709() -> None:
    """BT.2020 white stays white, and its green lies outside of BT.709: cut to nothing but green."""
    white = round(65535 * float(tone_mapping.light_to_pq(np.array(100.0))))
    codes = np.array([[[white, white, white], [0, white, 0]]], dtype=np.uint16)
    (shown,) = tone_mapping.to_sdr(codes, tone_mapping.PQ, tone_mapping.BT2020_PRIMARIES)
    assert np.ptp(shown[0].astype(int)) <= 1
    assert shown[1, 0] == shown[1, 2] == 0
    assert shown[1, 1] >= shown[0, 1]


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(16, 15), (64, 137)),
        (Fraction(64, 45), (64, 182)),
        (Fraction(8, 9), (72, 128)),
        (Fraction(1, 1), (64, 128)),
        (Fraction(1000, 1), (64, 128)),
    ],
)
@pytest.mark.parametrize("name", ["aspect.mp4", "aspect.mkv"])
def test_pixels_that_are_not_square(tmp_path: Path, name: str, aspect: Fraction, size: tuple[int, int]) -> None:
    path = write_numbers(tmp_path / name, "libx264", range(30), aspect=aspect)
    for time_limit in (None, 60.0):
        with open_video(path, time_limit=time_limit) as video:
            assert (video.height, video.width) == size
            assert video.table.oddity == (None if size == (64, 128) else "its pixels are not square")
            frame = video.frames_at([0.5])[0][0]
            assert frame.shape == (*size, 3)
            # The blocks are still eight across and two down.
            blocks = torch.nn.functional.interpolate(frame.permute(2, 0, 1)[None].float(), (64, 128), mode="area")
            assert number_in(blocks[0].permute(1, 2, 0)) == 15


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


# -- times that are stated for some frames only ----------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "b_frames"), [("mpeg2video", 2), ("mpeg1video", 2), ("libx264", 2)])
def test_program_streams_far_from_their_start(tmp_path: Path, codec: str, b_frames: int) -> None:
    """A pack holds many frames and the time of one; after a seek the demuxer makes up other times for the rest."""
    path = write_numbers(tmp_path / "film.mpg", codec, range(160), gop=20, b_frames=b_frames)
    with open_video(path) as video:
        check_every_way(video, list(range(160)))
        assert video.damage is None
        assert video.table.oddity is None
        for plan in ([155, 12], [40, 80, 120], [59, 60, 61, 139]):
            with open_video(path) as fresh:
                assert numbers_in(fresh.frames_at(fresh.timestamps[plan])[0]) == plan
