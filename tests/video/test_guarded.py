"""Decoding in a process that can be killed: the same frames, and no file takes this process along."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.video_files import ClipSpec, numbers_in, write_clip

from zoomzero.video import VideoError, guarded, open_video

LIMIT = 60.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("guarded"), ClipSpec("clip.mp4", b_frames=2, num_frames=120))


def worker_process() -> int:
    return guarded._pool.worker().process.pid


def test_the_same_video_as_in_this_process(clip: Path) -> None:
    with open_video(clip, time_limit=LIMIT) as video, open_video(clip) as direct:
        assert video.timestamps.tolist() == direct.timestamps.tolist()
        for name in ("duration", "fps", "num_frames", "height", "width", "codec", "damage", "path", "backend"):
            assert getattr(video, name) == getattr(direct, name)
        seconds = [3.9, 0.0, 1.25, 1.25]
        frames, starts = video.frames_at(seconds)
        assert torch.equal(frames, direct.frames_at(seconds)[0])
        assert starts.tolist() == direct.frames_at(seconds)[1].tolist()
        streamed = torch.cat([chunk for chunk, _ in video.stream(np.arange(0, 4, 0.1), chunk=7)])
        assert numbers_in(streamed) == list(range(0, 120, 3))


def test_bytes_and_file_objects(clip: Path) -> None:
    for source in (clip.read_bytes(), io.BytesIO(clip.read_bytes())):
        with open_video(source, time_limit=LIMIT) as video:
            assert numbers_in(video.frames_at([2.0])[0]) == [60]


def test_errors_come_across(tmp_path: Path, clip: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a film\n" * 100)
    with pytest.raises(VideoError, match=r"text\.mp4: not a video file"):
        open_video(text, time_limit=LIMIT)
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path / "missing.mp4", time_limit=LIMIT)
    with open_video(clip, time_limit=LIMIT) as video, pytest.raises(ValueError, match="seconds must be in"):
        video.frames_at([99.0])


def test_a_decoder_that_hangs_is_stopped_and_the_next_file_is_read(clip: Path) -> None:
    with open_video(clip, time_limit=0.5) as video, open_video(clip, time_limit=LIMIT) as other:
        hung = worker_process()
        os.kill(hung, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(VideoError, match=r"clip\.mp4: the decoder gave no sign of life for 0\.5 s and was stopped"):
            video.frames_at([1.0])
        assert time.monotonic() - begin < 20
        with pytest.raises(ProcessLookupError):
            os.kill(hung, 0)
        # Both are opened again in a fresh process, the one that hung as well as the bystander.
        assert numbers_in(other.frames_at([2.0])[0]) == [60]
        assert worker_process() != hung


def test_a_decoder_that_crashes_is_named(clip: Path) -> None:
    with open_video(clip, time_limit=LIMIT) as video:
        os.kill(worker_process(), signal.SIGSEGV)
        with pytest.raises(VideoError, match=r"clip\.mp4: the decoder crashed \(SIGSEGV\)"):
            video.frames_at([1.0])
        assert numbers_in(video.frames_at([1.0])[0]) == [30]


def test_many_threads_share_the_process(clip: Path) -> None:
    wrong: list[int] = []

    def read(first: int) -> None:
        with open_video(clip, time_limit=LIMIT) as video:
            for number in range(first, 120, 17):
                if numbers_in(video.frames_at([number / 30])[0]) != [number]:
                    wrong.append(number)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_arguments(clip: Path) -> None:
    with pytest.raises(ValueError, match="time_limit must be positive seconds, got 0"):
        open_video(clip, time_limit=0)
