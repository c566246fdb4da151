"""Decoding in a process that can be killed: the same frames, and no file takes this process along."""

from __future__ import annotations

import gc
import io
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.decoders import handles_of, process_of, slowed_down
from support.video_files import ClipSpec, mux_copy, numbers_in, write_clip, write_pictures

from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.decoders import Decoder, pool

LIMIT = 60.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("guarded"), ClipSpec("clip.mp4", b_frames=2, num_frames=120))


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


# -- hanging and crashing --------------------------------------------------------------------------------------------


def test_a_decoder_that_hangs_is_stopped_and_the_next_file_is_read(clip: Path) -> None:
    with (
        open_video(clip, time_limit=0.5, num_decoders=1) as video,
        open_video(clip, time_limit=LIMIT, num_decoders=1) as other,
    ):
        hung = process_of(video)
        assert process_of(other) == hung
        os.kill(hung, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(VideoError, match=r"clip\.mp4: the decoder gave no sign of life for 0\.5 s and was stopped"):
            video.frames_at([1.0])
        assert time.monotonic() - begin < 20
        with pytest.raises(ProcessLookupError):
            os.kill(hung, 0)
        # Both are opened again in a fresh process, the one that hung as well as the bystander.
        assert numbers_in(other.frames_at([2.0])[0]) == [60]
        assert process_of(other) != hung


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_killed_from_outside_costs_no_frame(clip: Path, how: signal.Signals) -> None:
    with open_video(clip, time_limit=LIMIT) as video:
        killed = process_of(video)
        os.kill(killed, how)
        assert numbers_in(video.frames_at([1.0])[0]) == [30]
        assert process_of(video) != killed


def test_a_file_that_crashes_two_processes_is_skipped_and_the_cause_is_named(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process is out of memory as soon as it has started."""
    pool.stop()
    start = Decoder._start
    started: list[int] = []

    def starved(self: Decoder) -> None:
        start(self)
        started.append(self.process.pid)
        resource.prlimit(self.process.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))

    monkeypatch.setattr(Decoder, "_start", starved)
    crash = r"clip\.mp4: the decoder crashed \((exit status 1|SIG\w+)\): .*(failed to map|[Mm]emory|bad_alloc)"
    with pytest.raises(VideoError, match=crash):
        open_video(clip, time_limit=LIMIT)
    assert len(started) == 2
    monkeypatch.undo()
    with open_video(clip, time_limit=LIMIT) as video:
        assert numbers_in(video.frames_at([1.0])[0]) == [30]


def test_the_last_lines_of_standard_error_are_in_the_error(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that no decoder knows ends it with a traceback, as any defect would."""
    with open_video(clip, time_limit=LIMIT) as video:
        send = Decoder._send
        monkeypatch.setattr(
            Decoder,
            "_send",
            lambda self, message, limit: send(self, {**message, "op": message["op"].replace("read", "reed")}, limit),
        )
        with pytest.raises(VideoError, match=r"the decoder crashed \(exit status 1\): .*KeyError: 'reed'"):
            video.frames_at([1.0])


def test_a_decoder_that_makes_progress_lives(tmp_path: Path, clip: Path) -> None:
    """A far frame of a long group of pictures, and many packets: more time than the limit, but signs of life."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (360, 640, 3), dtype=np.uint8) for _ in range(8)]
    far = write_pictures(
        tmp_path / "far.mp4",
        "libx264",
        [noise[i % 8] for i in range(90)],
        gop=90,
        options={"x264-params": "scenecut=0"},
    )
    many = mux_copy([clip] * 800, tmp_path / "many.mkv")
    limit = 2.0
    with open_video(far, time_limit=limit, num_decoders=1, num_threads=1) as video:
        process = process_of(video)
        with slowed_down(process, pause_seconds=0.3, run_seconds=0.03):
            begin = time.monotonic()
            video.frames_at([2.9])
            decoded = time.monotonic()
            with open_video(many, time_limit=limit, num_decoders=1) as other:
                assert other.num_frames == 800 * 120
                assert process_of(other) == process
            scanned = time.monotonic()
        assert decoded - begin > limit
        assert scanned - decoded > limit


# -- the channel -----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_an_exception_in_the_middle_of_a_read_never_gives_another_reads_frames(clip: Path) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupted

    rng = random.Random(4)
    previous = signal.signal(signal.SIGALRM, interrupt)
    num_interrupted = 0
    try:
        with open_video(clip, time_limit=LIMIT) as video:
            for turn in range(6):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.02))
                    while True:
                        wanted = rng.sample(range(120), 8)
                        assert numbers_in(video.frames_at([i / 30 for i in wanted])[0]) == wanted
                except Interrupted:
                    num_interrupted += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                wanted = [turn, 119 - turn]
                assert numbers_in(video.frames_at([i / 30 for i in wanted])[0]) == wanted
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert num_interrupted == 6


def test_an_answer_to_another_request_is_not_taken(clip: Path) -> None:
    with open_video(clip, time_limit=LIMIT) as video:
        process = process_of(video)
        decoder = next(decoder for decoder in pool.decoders if decoder.process.pid == process)
        decoder._requests = iter([10**6])
        number = next(decoder._requests)
        decoder._send({"op": "close", "video": -1, "request": number, "beat": LIMIT}, LIMIT)
        decoder._requests = iter(range(10**7, 10**8))
        # The answer to that request still lies in the channel: the process is replaced.
        assert numbers_in(video.frames_at([2.0])[0]) == [60]
        assert process_of(video) != process


def test_nothing_is_imported_from_the_current_folder(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("av", "numpy", "torch", "json", "sitecustomize", "cupy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    for entry in ("", ".", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool.stop()
    with open_video(clip, time_limit=LIMIT) as video:
        assert numbers_in(video.frames_at([1.0])[0]) == [30]
    assert not (tmp_path / "executed").exists()


def test_more_descriptors_than_select_can_hold(clip: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"needs 2048 descriptors, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    taken: list[int] = []
    try:
        pool.stop()
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        with open_video(clip, time_limit=LIMIT) as video:
            assert numbers_in(video.frames_at([1.0])[0]) == [30]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_videos_dropped_without_closing_are_closed_in_the_process(clip: Path) -> None:
    with open_video(clip, time_limit=LIMIT, num_decoders=1) as video:
        process = process_of(video)
        before = handles_of(process)
        for _ in range(40):
            dropped = open_video(clip, time_limit=LIMIT, num_decoders=1)
            assert process_of(dropped) == process
        del dropped
        gc.collect()
        assert numbers_in(video.frames_at([1.0])[0]) == [30]
        assert handles_of(process) == before


# -- files that change -----------------------------------------------------------------------------------------------


# The process that held the file is lost, or not; or there is none.
@pytest.mark.parametrize("way", ["lost", "there", "own"])
def test_a_file_replaced_after_opening_is_an_error(clip: Path, tmp_path: Path, way: str) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(clip.read_bytes())
    other = write_clip(tmp_path, ClipSpec("other.mp4", num_frames=60, gop=5))
    with open_video(path, time_limit=None if way == "own" else LIMIT) as video:
        assert numbers_in(video.frames_at([1.0])[0]) == [30]
        other.replace(path)
        if way == "lost":
            os.kill(process_of(video), signal.SIGKILL)
        with pytest.raises(
            VideoError, match=r"film\.mp4: changed on disk since it was opened \(\d+ bytes then, \d+ now"
        ):
            video.frames_at([1.5])


def test_a_file_written_to_after_opening_is_an_error(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(clip.read_bytes())
    with open_video(path) as video:
        data = path.read_bytes()
        path.write_bytes(data)
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        with pytest.raises(VideoError, match="changed on disk since it was opened"):
            video.frames_at([1.5])


# -- forks -----------------------------------------------------------------------------------------------------------


def in_a_fork(action: Callable[[], bool]) -> int:
    """Exit status of a forked child that runs the action: 0 where it gives True; -1 where it hangs."""
    child = os.fork()
    if not child:
        status = 2
        try:
            status = 0 if action() else 1
        finally:
            os._exit(status)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


# In this process PyAV's own threads decode, which the child does not have.
@pytest.mark.parametrize("time_limit", [LIMIT, None])
def test_a_fork_while_another_thread_decodes_does_not_hang(tmp_path: Path, time_limit: float | None) -> None:
    path = write_clip(tmp_path, ClipSpec("long.mp4", num_frames=600, gop=600, b_frames=2))
    ended = threading.Event()
    right: list[bool] = []

    def decode(video: Video) -> None:
        while not ended.is_set():
            right.append(numbers_in(video.frames_at([19.0, 0.5])[0]) == [570, 15])

    with open_video(path, time_limit=time_limit) as video, open_video(path, time_limit=time_limit) as other:
        other.frames_at([1.0])
        thread = threading.Thread(target=decode, args=(video,))
        thread.start()
        while not right:
            time.sleep(0.01)
        try:
            statuses = [
                in_a_fork(lambda: numbers_in(video.frames_at([2.0])[0]) == [60]),
                in_a_fork(lambda: numbers_in(other.frames_at([3.0])[0]) == [90]),
                in_a_fork(lambda: numbers_in(open_video(path, time_limit=time_limit).frames_at([4.0])[0]) == [120]),
            ]
        finally:
            ended.set()
            thread.join()
        assert statuses == [0, 0, 0]
        assert all(right)
        assert numbers_in(other.frames_at([5.0])[0]) == [150]


# -- several at a time -----------------------------------------------------------------------------------------------


def test_videos_decode_side_by_side(clip: Path) -> None:
    """One decoder is stopped in the middle; another video's frames come all the same."""
    with (
        open_video(clip, time_limit=LIMIT, num_decoders=2) as video,
        open_video(clip, time_limit=LIMIT, num_decoders=2) as other,
    ):
        first, second = process_of(video), process_of(other)
        assert first != second
        os.kill(first, signal.SIGSTOP)
        late: list[int] = []
        thread = threading.Thread(target=lambda: late.extend(numbers_in(video.frames_at([1.0])[0])))
        thread.start()
        assert numbers_in(other.frames_at([2.0])[0]) == [60]
        assert not late
        os.kill(first, signal.SIGCONT)
        thread.join()
        assert late == [30]


def test_no_more_processes_than_told(clip: Path) -> None:
    pool.stop()
    videos = [open_video(clip, time_limit=LIMIT, num_decoders=2) for _ in range(5)]
    assert len(pool.decoders) == 2
    assert sorted(len(decoder.videos) for decoder in pool.decoders) == [2, 3]
    for video in videos:
        video.close()
    # Videos read one after the other need one process.
    pool.stop()
    for _ in range(3):
        open_video(clip, time_limit=LIMIT, num_decoders=2).close()
    assert len(pool.decoders) == 1


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
    with pytest.raises(ValueError, match="num_decoders must be at least 1, got 0"):
        open_video(clip, time_limit=1, num_decoders=0)
