"""Draw one synthetic clip and write it as a real H.264 .mp4 file.

A clip is a drifting, noisy texture with moving grey blobs, in which coloured signs appear for a few seconds each. Every
sign carries a letter of a few pixels: its colour survives a strong reduction of the frame, its letter does not. So a
model that sees the whole clip coarsely can find *when* a sign is shown, and must look again to read it.

Everything is a function of the `ClipSpec`: the same spec gives the same bytes. Only numpy and PyAV are imported, so
that this file, run as a script, is a worker process that starts fast (see `clips.make_clips`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Changing anything that changes pixels must change this number: it is part of the cache key of every clip.
RENDERER_VERSION = 1

# x264's adaptive quantisation and macroblock tree make equal frames into different files now and then.
ENCODER_OPTIONS = {"preset": "veryfast", "crf": "20", "x264-params": "aq-mode=0:mbtree=0"}

# The world is laid out on a canvas of 64 x 64 units and scaled to the frame size.
CANVAS = 64
SIGN_SIDE = 22  # units; a glyph of 5x7 dots of 2 units and a rim
DOT = 2  # units a glyph dot

COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    # name: (dark shade under a light letter, bright shade under a dark letter)
    "red": ((170, 20, 20), (250, 80, 80)),
    "green": ((10, 120, 30), (70, 220, 90)),
    "blue": ((25, 40, 180), (90, 130, 255)),
}
GLYPHS: dict[str, tuple[str, ...]] = {
    "A": ("01110", "10001", "10001", "11111", "10001", "10001", "10001"),
    "B": ("11110", "10001", "10001", "11110", "10001", "10001", "11110"),
    "C": ("01110", "10001", "10000", "10000", "10000", "10001", "01110"),
    "D": ("11100", "10010", "10001", "10001", "10001", "10010", "11100"),
}


@dataclasses.dataclass(frozen=True)
class Sign:
    """A sign on screen: colour and letter, where (top left corner in canvas units) and when (seconds)."""

    colour: str
    letter: str
    x: int
    y: int
    dark_letter: bool
    intervals: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """All that determines a clip. size is the side of the square frame in pixels, duration is in seconds."""

    seed: int
    size: int
    fps: int
    duration: float
    signs: tuple[Sign, ...]

    @property
    def num_frames(self) -> int:
        return round(self.duration * self.fps)

    def file_name(self) -> str:
        """Content-addressed: any change of the spec or of the renderer gives another name."""
        content = json.dumps([RENDERER_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return f"{hashlib.sha256(content.encode()).hexdigest()[:20]}.mp4"


def spec_from_json(data: dict) -> ClipSpec:
    signs = tuple(
        Sign(**{**sign, "intervals": tuple((float(start), float(end)) for start, end in sign["intervals"])})
        for sign in data["signs"]
    )
    return ClipSpec(**{**data, "signs": signs})


def draw_frames(spec: ClipSpec) -> Iterator[np.ndarray]:
    """Yield the frames of a clip in order: uint8 [size, size, 3], RGB."""
    rng = np.random.default_rng(spec.seed)
    scale = spec.size / CANVAS
    texture = _periodic_texture(rng, spec.size)
    velocity = rng.uniform(-1.5, 1.5, size=2) * scale  # pixels per second
    blobs = _Blobs(rng, scale)
    sprites = [(sign, _sign_sprite(sign, scale)) for sign in spec.signs]
    for frame_index in range(spec.num_frames):
        seconds = frame_index / spec.fps
        frame = _shifted(texture, velocity * seconds)
        blobs.draw(frame, seconds)
        for sign, sprite in sprites:
            if any(start <= seconds < end for start, end in sign.intervals):
                top, left = round(sign.y * scale), round(sign.x * scale)
                frame[top : top + sprite.shape[0], left : left + sprite.shape[1]] = sprite
        noise = rng.integers(-10, 11, size=frame.shape, dtype=np.int8)
        yield np.clip(frame + noise, 0, 255).astype(np.uint8)


def write_clip(spec: ClipSpec, path: Path) -> None:
    """Encode the clip as H.264 (yuv420p, one thread and bit-exact muxing, so that equal specs give equal files).

    The file appears under its name only when it is complete.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        with av.open(str(partial), "w", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=spec.fps, options=ENCODER_OPTIONS)
            stream.width = stream.height = spec.size
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, spec.fps)
            stream.codec_context.thread_count = 1
            stream.codec_context.gop_size = 4 * spec.fps
            for index, pixels in enumerate(draw_frames(spec)):
                frame = av.VideoFrame.from_ndarray(_yuv420p(pixels), format="yuv420p")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _yuv420p(pixels: np.ndarray) -> np.ndarray:
    """RGB uint8 [h, w, 3] to planar YUV 4:2:0 uint8 [3 * h / 2, w]: BT.601, limited range, chroma of the mean of 2x2.

    FFmpeg's converter gives equal frames different chroma now and then, and so different files.
    """
    height, width, _ = pixels.shape
    rgb = pixels.astype(np.int32)
    luma = (rgb @ np.array([66, 129, 25]) + 128 >> 8) + 16
    quads = rgb.reshape(height // 2, 2, width // 2, 2, 3).sum(axis=(1, 3))
    chroma = (quads @ np.array([[-38, 112], [-74, -94], [112, -18]]) + 512 >> 10) + 128
    planes = [luma.ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()]
    return np.concatenate(planes).astype(np.uint8).reshape(height * 3 // 2, width)


def _periodic_texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth texture that tiles, float32 [size, size, 3]: a few low-frequency waves over a dull base colour."""
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    grey = rng.uniform(90, 160)
    texture = np.full((size, size, 3), grey, dtype=np.float32) + rng.uniform(-12, 12, size=3).astype(np.float32)
    for _ in range(5):
        # Whole numbers of periods a side, so that the texture tiles.
        periods_y, periods_x = rng.integers(-4, 5, size=2)
        wave = np.sin(2 * np.pi * (periods_y * y + periods_x * x) / size + rng.uniform(0, 2 * np.pi))
        tint = rng.uniform(5, 16) + rng.uniform(-4, 4, size=3)
        texture += wave[..., None].astype(np.float32) * tint.astype(np.float32)
    return texture


def _shifted(texture: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The tiling texture moved by a fractional offset (dy, dx) in pixels, bilinear; float32."""
    whole = np.floor(offset).astype(int)
    fy, fx = (offset - whole).astype(np.float32)
    moved = np.roll(texture, whole, axis=(0, 1))
    moved = (1 - fy) * moved + fy * np.roll(moved, 1, axis=0)
    return (1 - fx) * moved + fx * np.roll(moved, 1, axis=1)


class _Blobs:
    """Soft grey discs that move in straight lines and wrap around: distractors with edges and motion but no colour."""

    def __init__(self, rng: np.random.Generator, scale: float) -> None:
        count = int(rng.integers(3, 6))
        self._start = rng.uniform(0, CANVAS, size=(count, 2))
        self._velocity = rng.uniform(-4, 4, size=(count, 2))  # units a second
        self._radius = rng.uniform(3, 8, size=count)
        self._shade = rng.uniform(40, 215, size=(count, 1)) + rng.uniform(-10, 10, size=(count, 3))
        self._scale = scale

    def draw(self, frame: np.ndarray, seconds: float) -> None:
        centres = (self._start + self._velocity * seconds) % CANVAS
        for centre, radius, shade in zip(centres * self._scale, self._radius * self._scale, self._shade, strict=True):
            reach = radius + self._scale
            top, left = np.maximum(np.floor(centre - reach), 0).astype(int)
            bottom, right = np.minimum(np.ceil(centre + reach) + 1, frame.shape[0]).astype(int)
            y, x = np.ogrid[top:bottom, left:right]
            distance = np.sqrt((y - centre[0]) ** 2 + (x - centre[1]) ** 2)
            alpha = np.clip((radius - distance) / self._scale + 0.5, 0, 1).astype(np.float32)[..., None]
            window = frame[top:bottom, left:right]
            window += alpha * (shade.astype(np.float32) - window)


def _sign_sprite(sign: Sign, scale: float) -> np.ndarray:
    """The sign as pixels, float32 [side, side, 3]: coloured square, rim, and the letter in the middle."""
    dark, bright = COLOURS[sign.colour]
    ink = 15.0 if sign.dark_letter else 245.0
    canvas = np.empty((SIGN_SIDE, SIGN_SIDE, 3), dtype=np.float32)
    canvas[:] = bright if sign.dark_letter else dark
    dots = np.array([[int(dot) for dot in row] for row in GLYPHS[sign.letter]], dtype=bool)
    letter = np.kron(dots, np.ones((DOT, DOT), dtype=bool))
    top, left = (SIGN_SIDE - letter.shape[0]) // 2, (SIGN_SIDE - letter.shape[1]) // 2
    canvas[top : top + letter.shape[0], left : left + letter.shape[1]][letter] = ink
    side = round(SIGN_SIDE * scale)
    source = (np.arange(side) * SIGN_SIDE) // side
    return canvas[source][:, source]


def _work() -> None:
    """Worker: reads {"directory": ..., "specs": [...]} on stdin, writes the clips, prints each file name when done."""
    job = json.load(sys.stdin)
    directory = Path(job["directory"])
    for data in job["specs"]:
        spec = spec_from_json(data)
        write_clip(spec, directory / spec.file_name())
        print(spec.file_name(), flush=True)


if __name__ == "__main__":
    _work()
