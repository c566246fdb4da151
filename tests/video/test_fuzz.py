"""Five hundred damaged files: each gives frames or a VideoError; none hangs, crashes the decoder or leaks a handle."""

from __future__ import annotations

import collections
import os
import random
import time
from pathlib import Path

import pytest
from support.video_files import ClipSpec, write_clip

from zoomzero.video import VideoError, open_video
from zoomzero.video.decoders import pool

NUM_FILES = 500
TIME_LIMIT_SECONDS = 30.0

# One container and codec of each family that users bring.
SEEDS = [
    ClipSpec("seed.mp4", b_frames=2, num_frames=60),
    ClipSpec("seed.mkv", b_frames=2, num_frames=60),
    ClipSpec("seed.ts", num_frames=60),
    ClipSpec("seed.webm", codec="libvpx-vp9", num_frames=60, options={"deadline": "realtime", "cpu-used": "8"}),
    ClipSpec("seed.avi", codec="mpeg4", num_frames=60, ticks_per_frame=1),
    ClipSpec("hevc.mp4", codec="libx265", num_frames=60, options={"x265-params": "log-level=none"}),
]


def flip_bits(rng: random.Random, data: bytes, _: bytes) -> bytes:
    damaged = bytearray(data)
    for _flip in range(rng.choice([1, 8, 64, 512])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def flip_header_bits(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """Headers are where sizes, counts and offsets stand; in an mp4 they are at the end."""
    damaged = bytearray(data)
    near_end = rng.random() < 0.5
    for _flip in range(rng.choice([1, 4, 16])):
        place = rng.randrange(min(600, len(damaged)))
        damaged[-1 - place if near_end else place] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(1, len(data))]


def drop_a_piece(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 2000) :]


def splice_headers(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one file before the rest of another."""
    cut = rng.randrange(16, 600)
    return other[:cut] + data[cut:]


def fill_with_ones(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(data))
    length = rng.choice([4, 8, 100])
    return data[:start] + b"\xff" * length + data[start + length :]


MUTATIONS = [flip_bits, flip_header_bits, truncate, drop_a_piece, splice_headers, fill_with_ones]


def outcome(path: Path) -> str:
    """ "read", or the error's text."""
    try:
        with open_video(path, time_limit=TIME_LIMIT_SECONDS, max_pixels=4096 * 4096) as video:
            count = min(video.num_frames, 8)
            step = max(1, video.num_frames // count)
            frames, _ = video.frames_at(video.timestamps[::step][:count])
            assert frames.shape[1:] == (video.height, video.width, 3)
            return "read"
    except VideoError as error:
        return str(error)


@pytest.mark.slow
def test_damaged_files_give_frames_or_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    originals = [(spec.name, write_clip(tmp_path, spec).read_bytes()) for spec in SEEDS]
    rng = random.Random(20)
    pool.stop()
    path = tmp_path / "warm.mp4"
    path.write_bytes(originals[0][1])
    assert outcome(path) == "read"
    (worker,) = (decoder.process.pid for decoder in pool.decoders)
    own, others = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{worker}/fd"))
    results: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for number in range(NUM_FILES):
        name, data = rng.choice(originals)
        mutation = rng.choice(MUTATIONS)
        path = tmp_path / f"{number}_{mutation.__name__}_{name}"
        path.write_bytes(mutation(rng, data, rng.choice(originals)[1]))
        begin = time.monotonic()
        result = outcome(path)
        assert "no sign of life" not in result
        assert "crashed" not in result
        assert result == "read" or str(path) in result
        results["read" if result == "read" else "refused"] += 1
        slowest = max(slowest, time.monotonic() - begin)
        path.unlink()
    assert [decoder.process.pid for decoder in pool.decoders] == [worker], "the decoding process was lost on the way"
    assert len(os.listdir("/proc/self/fd")) == own
    assert len(os.listdir(f"/proc/{worker}/fd")) == others
    # Both outcomes must occur, or the mutations test nothing.
    assert min(results["read"], results["refused"]) > 50
    with capsys.disabled():
        print(f"\n{NUM_FILES} damaged files: {dict(results)}, slowest {slowest:.2f} s")
