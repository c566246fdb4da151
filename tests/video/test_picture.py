"""Pictures as players show them: turned, with square pixels, on black, in the range of an ordinary display."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.video_files import mux_copy, number_in, write_numbers, write_pictures

from zoomzero.video import open_video, tone_mapping

VP9 = {"deadline": "realtime", "cpu-used": "8"}


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
        # Beside the packets, which FFmpeg's own decoders do not look at.
        ("alpha.webm", "libvpx-vp9", "yuva420p"),
        ("alpha.webm", "libvpx", "yuva420p"),
    ],
)
def test_transparency_is_composed_on_black(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    rgba = np.zeros((64, 128, 4), dtype=np.uint8)
    rgba[:, :, :3] = (200, 120, 40)
    rgba[:, :64, 3], rgba[:, 64:96, 3] = 255, 128
    options = {**VP9, "auto-alt-ref": "0"} if codec.startswith("libvpx") else {}
    path = write_pictures(
        tmp_path / name, codec, [rgba] * 30, pixel_format=pixels, source_format="rgba", options=options, gop=5
    )
    with open_video(path) as video:
        shown = video.frames_at([0.0])[0][0].float()
        # After seeks, and side by side.
        for far in video.frames_at([0.4, 0.6, 0.97])[0]:
            assert (far.float() - shown).abs().mean() < 3
    tolerance = 4 if codec in ("prores_ks", "libvpx-vp9", "libvpx") else 1
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
