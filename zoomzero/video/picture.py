"""A decoded frame as a player shows it: turned, with square pixels, on black, in the range of an ordinary display.

Every frame of a video has one size: that of the first one as shown. A frame of another size is letterboxed into it.
Pixels that are not square are made so by stretching the shorter side of a pixel, as players do: 720x576 with pixels of
16:15 becomes 768x576, 720x480 with pixels of 8:9 becomes 720x540.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from zoomzero.video import tone_mapping
from zoomzero.video.orientation import Orientation

# A pixel more oblong than this is a mistake in the file; players' windows would not fit it either.
MOST_OBLONG = 8

Pixels = npt.NDArray[np.uint8]


def is_hdr(frame: av.VideoFrame) -> bool:
    """Whether the frame's transfer characteristic is PQ or HLG."""
    return int(frame.color_trc or 0) in (tone_mapping.PQ, tone_mapping.HLG)


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether pixels may be transparent."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def square_size(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """Height and width with square pixels.

    Args:
        height, width: pixels as stored.
        aspect: width of a pixel per its height; None, or one that cannot be meant, is 1.
    """
    if not aspect or not Fraction(1, MOST_OBLONG) <= aspect <= MOST_OBLONG:
        return height, width
    if aspect >= 1:
        return height, max(1, round(width * aspect))
    return max(1, round(height / aspect)), width


class Picture:
    """Turns decoded frames into shown ones.

    Args:
        first: the video's first frame.
        aspect: width of a pixel per its height, or None for square ones.

    Attributes:
        orientation: how frames are turned and mirrored at last.
        height, width: of every shown frame.
        is_hdr: the first frame is PQ or HLG.
        oddity: what of this a reader that only turns frames would miss, or None.
    """

    def __init__(self, first: av.VideoFrame, aspect: Fraction | None) -> None:
        self._aspect = aspect
        self._size = square_size(first.height, first.width, aspect)
        self.orientation = Orientation.of(first)
        self.height, self.width = self.orientation.shown_size(*self._size)
        self.is_hdr = is_hdr(first)
        self.oddity: str | None = None
        if self._size != (first.height, first.width):
            self.oddity = "its pixels are not square"
        elif self.is_hdr:
            self.oddity = "its range is high (PQ or HLG)"
        elif has_alpha(first):
            self.oddity = "its pixels may be transparent"
        # One converter a file: a frame's own to_ndarray builds a new one, with its threads, for every frame.
        self._reformatter = VideoReformatter()

    def leave(self) -> VideoReformatter:
        """Take a fresh converter; the old one, whose threads stayed in the parent of a fork, is the caller's."""
        used, self._reformatter = self._reformatter, VideoReformatter()
        return used

    def pixels(self, frame: av.VideoFrame) -> Pixels:
        """uint8 [height, width, 3]."""
        return self.orientation.pixels(self._upright(frame))

    def _upright(self, frame: av.VideoFrame) -> Pixels:
        height, width = square_size(frame.height, frame.width, self._aspect)
        if (height, width) == self._size:
            return self._rgb(frame, height, width)
        scale = min(Fraction(self._size[0], height), Fraction(self._size[1], width))
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (self._size[0] - inner[0]) // 2, (self._size[1] - inner[1]) // 2
        boxed = np.zeros((*self._size, 3), dtype=np.uint8)
        boxed[top : top + inner[0], left : left + inner[1]] = self._rgb(frame, *inner)
        return boxed

    def _rgb(self, frame: av.VideoFrame, height: int, width: int) -> Pixels:
        if is_hdr(frame):
            codes: npt.NDArray[np.uint16] = self._converted(frame, height, width, "rgb48le")
            return tone_mapping.to_sdr(codes, int(frame.color_trc), int(frame.color_primaries or 0))
        if has_alpha(frame):
            rgba = self._converted(frame, height, width, "rgba").astype(np.uint16)
            return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        rgb: Pixels = self._converted(frame, height, width, "rgb24")
        return rgb

    def _converted(self, frame: av.VideoFrame, height: int, width: int, pixel_format: str) -> Any:
        # Colours of frames that keep their size are those of FFmpeg's default; only scaling asks for a better filter.
        scaling = None if (height, width) == (frame.height, frame.width) else "BICUBIC"
        return self._reformatter.reformat(frame, width, height, pixel_format, interpolation=scaling).to_ndarray()
