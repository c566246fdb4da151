"""How decoded pixels are turned and mirrored to be shown, from the display matrix that a container carries.

FFmpeg's decoders give frames as they were coded. The display matrix (ISO 14496-12, the track header's matrix; 16.16
fixed point, rows a b u, c d v, x y w) maps the coded pixel (p, q) to the shown one:

    p' = a p + c q + x,    q' = b p + d q + y    (p to the right, q downwards).

Cameras write the eight matrices of quarter turns and mirrorings only; any other is taken for the nearest of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from av.sidedata.sidedata import Type

MATRIX_BYTES = 9 * 4


@dataclass(frozen=True)
class Orientation:
    """Rows and columns exchanged first, then the order of the rows and of the columns reversed."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @staticmethod
    def of(frame: av.VideoFrame) -> Orientation:
        """Orientation of a decoded frame; the identity where it carries no usable matrix."""
        # PyAV's annotation knows one kind of side data only.
        side_data: Any = frame.side_data
        try:
            matrix = bytes(side_data[Type.DISPLAYMATRIX])
        except KeyError:
            return Orientation()
        if len(matrix) < MATRIX_BYTES:
            return Orientation()
        a, b, _, c, d = struct.unpack("=5i", matrix[:20])
        if abs(b) > abs(a):
            return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
        return Orientation(flip_rows=d < 0, flip_columns=a < 0)

    def shown_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as shown, from those coded."""
        return (width, height) if self.transpose else (height, width)

    def pixels(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The shown frame, a view, of a coded one [H, W, 3]."""
        turned = frame.swapaxes(0, 1) if self.transpose else frame
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def tensor(self, frames: torch.Tensor) -> torch.Tensor:
        """The shown frames of coded ones [N, H, W, 3]."""
        turned = frames.transpose(1, 2) if self.transpose else frames
        flipped = [axis for axis, flip in ((1, self.flip_rows), (2, self.flip_columns)) if flip]
        return turned.flip(flipped) if flipped else turned
