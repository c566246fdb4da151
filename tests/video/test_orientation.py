"""Turned and mirrored videos: all eight display matrices of quarter turns and mirrorings, in every back end."""

from __future__ import annotations

import importlib.util
import itertools
import struct
from pathlib import Path

import pytest
import torch
from support.video_files import HEIGHT, WIDTH, ClipSpec, write_clip

from zoomzero.video import open_video

ONE = 1 << 16
# a, b, c, d of p' = a p + c q, q' = b p + d q: signs of a straight and of a transposed picture.
STRAIGHT = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)]
TRANSPOSED = [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]
VP9 = {"deadline": "realtime", "cpu-used": "8"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ClipSpec("plain.mp4", codec="libvpx-vp9", options=VP9, num_frames=12)
    return write_clip(tmp_path_factory.mktemp("orientation"), spec)


def with_matrix(path: Path, target: Path, entries: tuple[int, int, int, int]) -> Path:
    """The file with another display matrix in its track header (version 0: the matrix is 40 bytes into the payload)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (entry * ONE for entry in entries)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def shown(frames: torch.Tensor, entries: tuple[int, int, int, int]) -> torch.Tensor:
    """Every coded pixel put where the matrix says, one by one, and the picture moved to the origin."""
    a, b, c, d = entries
    q, p = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    columns, rows = a * p + c * q, b * p + d * q
    columns, rows = columns - columns.min(), rows - rows.min()
    result = torch.zeros(len(frames), int(rows.max()) + 1, int(columns.max()) + 1, 3, dtype=torch.uint8)
    result[:, rows, columns] = frames
    return result


@pytest.mark.parametrize("entries", STRAIGHT + TRANSPOSED)
@pytest.mark.parametrize("way", ["pyav", "guarded", "dali"])
def test_pixels_are_where_the_matrix_says(
    plain: Path, tmp_path: Path, entries: tuple[int, int, int, int], way: str
) -> None:
    if way == "dali" and importlib.util.find_spec("nvidia.dali") is None:
        pytest.skip("needs nvidia-dali-cuda130")
    options = {"pyav": {}, "guarded": {"time_limit": 60.0}, "dali": {"backend": "dali", "device": "cpu"}}[way]
    path = with_matrix(plain, tmp_path / "turned.mp4", entries)
    with open_video(plain, **options) as coded, open_video(path, **options) as video:
        expected = shown(coded.frames_at(coded.timestamps)[0], entries)
        assert (video.height, video.width) == tuple(expected.shape[1:3])
        assert torch.equal(video.frames_at(video.timestamps)[0], expected)


# A tilt is taken for the nearest quarter turn; a matrix of zeros says nothing.
@pytest.mark.parametrize("entries", [(0, 0, 0, 0), (5, 2, -2, 5)])
def test_other_matrices_are_taken_for_the_nearest(
    plain: Path, tmp_path: Path, entries: tuple[int, int, int, int]
) -> None:
    path = with_matrix(plain, tmp_path / "odd.mp4", entries)
    with open_video(plain) as coded, open_video(path) as video:
        assert torch.equal(video.frames_at([0.0])[0], coded.frames_at([0.0])[0])
