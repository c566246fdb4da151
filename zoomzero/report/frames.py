"""Thumbnails: the frames of a pass at the size the model got, side by side in one WebP image."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from zoomzero.budget import FramePlan
from zoomzero.models.base import HALVES, VisionGeometry
from zoomzero.patches import read_patches, seen_frames
from zoomzero.video import Video

# Pixels of a sheet, which bound how many frames of a pass are shown, and the fewest and most of them.
SHEET_PIXELS = 1_200_000
MIN_FRAMES, MAX_FRAMES = 4, 32
# WebP's quality up to a side of SMALL_SIDE, where pixels are looked at one by one, and above.
SMALL_SIDE = 64
SMALL_QUALITY, QUALITY = 90, 72


def shown_times(timestamps: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    """The times of the frames that a sheet shows: all, or as many as fit, evenly chosen with the first and the last."""
    height, width = size
    most = min(max(SHEET_PIXELS // max(height * width, 1), MIN_FRAMES), MAX_FRAMES)
    if len(timestamps) <= most:
        return tuple(timestamps)
    return tuple(timestamps[round(place * (len(timestamps) - 1) / (most - 1))] for place in range(most))


def sheet(video: Video, times: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """Frames of a video as the page takes them: url (a data URL), columns, width, height (of a frame) and times.

    Args:
        video: an open video.
        times: seconds of the frames, rising.
        size: (height, width) that the model got.

    Raises:
        VideoError: they cannot be read.
    """
    return encoded_sheet(read_frames(video, times, size), times)


def read_frames(video: Video, times: Sequence[float], size: tuple[int, int]) -> torch.Tensor:
    """uint8 [n, height, width, 3]: through the op that makes the model's patches, and back."""
    # Patches of any size give the same pixels; these fit every plan, without a second frame to fill a temporal patch.
    geometry = VisionGeometry(math.gcd(*size, 16), 1, 1, HALVES, HALVES)
    plan = FramePlan(tuple(times), size, len(times), 1.0)
    return seen_frames(read_patches(video, plan, geometry, torch.float32), geometry)


def encoded_sheet(frames: torch.Tensor, times: Sequence[float]) -> dict[str, Any]:
    """A sheet of frames uint8 [n, height, width, 3] shown at `times`."""
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = torch.zeros((rows * height, columns * width, 3), dtype=torch.uint8)
    for index, frame in enumerate(frames.cpu()):
        y, x = divmod(index, columns)
        canvas[y * height :, x * width :][:height, :width] = frame
    webp = io.BytesIO()
    quality = SMALL_QUALITY if max(height, width) <= SMALL_SIDE else QUALITY
    Image.fromarray(canvas.numpy()).save(webp, "WEBP", quality=quality, method=4)
    url = "data:image/webp;base64," + base64.b64encode(webp.getvalue()).decode()
    return {"url": url, "columns": columns, "width": width, "height": height, "times": [round(t, 3) for t in times]}
