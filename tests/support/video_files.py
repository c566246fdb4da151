"""Test clips whose frames carry their own number as pixels, in many codecs and containers, written with PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch

BITS = 16
HEIGHT, WIDTH = 64, 128
# Two rows of eight blocks, 16 pixels wide and 32 high: survives every lossy codec here.
COLUMNS = 8


def numbered_frame(number: int) -> npt.NDArray[np.uint8]:
    """uint8 [64, 128, 3]: bit i of the number is block i, white or black."""
    bits = np.array([number >> i & 1 for i in range(BITS)], dtype=np.uint8).reshape(2, COLUMNS)
    blocks = np.kron(bits, np.ones((HEIGHT // 2, WIDTH // COLUMNS), dtype=np.uint8))
    return np.repeat(blocks[:, :, None] * 200 + 28, 3, axis=2)


def number_in(frame: torch.Tensor) -> int:
    """The number a decoded frame [64, 128, 3] carries."""
    gray = frame.float().mean(dim=2)
    blocks = gray.reshape(2, HEIGHT // 2, COLUMNS, WIDTH // COLUMNS).mean(dim=(1, 3)).flatten()
    return sum(1 << i for i, level in enumerate(blocks.tolist()) if level > 128)


def numbers_in(frames: torch.Tensor) -> list[int]:
    return [number_in(frame) for frame in frames]


@dataclass(frozen=True)
class ClipSpec:
    """How a clip is written. Presentation times are whole ticks; a frame usually lasts `ticks_per_frame` of them."""

    name: str
    codec: str = "libx264"
    num_frames: int = 90
    rate: int = 30
    gop: int = 30
    b_frames: int = 0
    start: float = 0.0
    vfr: bool = False
    preroll: int = 0
    ticks_per_frame: int = 10
    rotation: int = 0
    options: dict[str, str] = field(default_factory=dict)

    def times(self) -> list[float]:
        """Seconds from the first shown frame at which frame number preroll + i starts (before container rounding)."""
        steps = self.ticks()[self.preroll :]
        return [(tick - steps[0]) / (self.rate * self.ticks_per_frame) for tick in steps]

    def ticks(self) -> list[int]:
        """Presentation times in ticks; a VFR clip has gaps of one to three frames."""
        if not self.vfr:
            return [self.ticks_per_frame * i for i in range(self.num_frames)]
        gaps = np.random.default_rng(7).choice([10, 13, 20, 30], size=self.num_frames)
        return [0, *np.cumsum(gaps)[:-1].tolist()]


def _muxed_shift(spec: ClipSpec, ticks: Sequence[int]) -> int:
    """Ticks added to every time: a late start, or a negative one for frames an edit list cuts away."""
    return round(spec.start * spec.rate * spec.ticks_per_frame) - ticks[spec.preroll]


def write_clip(folder: Path, spec: ClipSpec) -> Path:
    """Write the clip and return its path."""
    path = folder / spec.name
    ticks = spec.ticks()
    shift = _muxed_shift(spec, ticks)
    time_base = Fraction(1, spec.rate * spec.ticks_per_frame)
    options = {"avoid_negative_ts": "disabled"} if spec.preroll else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(spec.codec, rate=spec.rate, options=dict(spec.options))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if spec.codec == "mjpeg" else "yuv420p"
        stream.gop_size = spec.gop
        stream.max_b_frames = spec.b_frames
        stream.codec_context.time_base = time_base
        stream.time_base = time_base
        if spec.rotation:
            stream.set_display_rotation(spec.rotation)
        for number in range(spec.num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = ticks[number], time_base
            for packet in stream.encode(frame):
                _mux(container, packet, shift, time_base)
        for packet in stream.encode():
            _mux(container, packet, shift, time_base)
    return path


def _mux(container: av.container.OutputContainer, packet: av.Packet, shift: int, time_base: Fraction) -> None:
    offset = round(shift * time_base / packet.time_base)
    assert packet.pts is not None
    assert packet.dts is not None
    packet.pts += offset
    packet.dts += offset
    container.mux(packet)


def write_audio_only(path: Path) -> Path:
    """One second of silence in an mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for block in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, block * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_pictures(
    path: Path,
    codec: str,
    pictures: Iterable[npt.NDArray[np.uint8]],
    *,
    rate: int = 30,
    gop: int = 30,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    source_format: str = "rgb24",
    aspect: Fraction | None = None,
    keep: Callable[[int, av.Packet], bool] = lambda index, packet: True,
    change: Callable[[int, av.Packet], None] = lambda index, packet: None,
) -> Path:
    """Pictures as a clip; keep drops packets and change edits them, both by their place in decoding order."""
    frames = [av.VideoFrame.from_ndarray(picture, format=source_format) for picture in pictures]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pixel_format
        stream.gop_size, stream.max_b_frames = gop, b_frames
        stream.codec_context.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        packets = [packet for frame in frames for packet in stream.encode(frame)] + stream.encode()
        for index, packet in enumerate(packets):
            if keep(index, packet):
                change(index, packet)
                container.mux(packet)
    return path


def write_numbers(path: Path, codec: str, numbers: Iterable[int], **options: Any) -> Path:
    """Numbered frames as a clip; options as of `write_pictures`."""
    if codec == "mjpeg":
        options["pixel_format"] = "yuvj420p"
    return write_pictures(path, codec, map(numbered_frame, numbers), **options)


def mux_copy(parts: Sequence[Path], path: Path) -> Path:
    """The packets of several clips one after the other in one stream, whatever their sizes."""
    end = 0.0
    with av.open(str(path), "w") as out:
        stream = None
        for part in parts:
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                packets = [packet for packet in source.demux(video) if packet.size]
                first = float(packets[0].pts * packets[0].time_base)
                for packet in packets:
                    shift = round((end - first) / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    out.mux(packet)
                end += len(packets) / 30
    return path
