"""Opened videos kept for later, and reading ahead."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.video_files import ClipSpec, numbers_in, write_clip

from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.cache import VideoCache
from zoomzero.video.prefetch import Prefetcher


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loader")
    return [write_clip(folder, ClipSpec(f"{i}.mp4", num_frames=30)) for i in range(4)]


class CountingOpener:
    def __init__(self) -> None:
        self.opened: list[str] = []
        self.videos: list[Video] = []

    def __call__(self, path: str) -> Video:
        self.opened.append(Path(path).name)
        self.videos.append(open_video(path))
        return self.videos[-1]


def is_closed(video: Video) -> bool:
    try:
        video.frames_at([0.0])
    except ValueError:
        return True
    return False


def test_a_video_is_opened_once_and_the_oldest_goes_first(clips: list[Path]) -> None:
    opener = CountingOpener()
    with VideoCache(opener, max_videos=2) as cache:
        for which in (0, 1, 0, 2, 0, 1):
            with cache.use(clips[which]) as video:
                assert numbers_in(video.frames_at([0.5])[0]) == [15]
        assert opener.opened == ["0.mp4", "1.mp4", "2.mp4", "1.mp4"]
        assert [is_closed(video) for video in opener.videos] == [False, True, True, False]
        assert len(cache) == 2
    assert all(is_closed(video) for video in opener.videos)
    with pytest.raises(ValueError, match="the cache must be open, got a closed one"), cache.use(clips[0]):
        pass


def test_two_users_at_a_time_get_two_videos_and_one_is_kept(clips: list[Path]) -> None:
    opener = CountingOpener()
    with VideoCache(opener) as cache:
        with cache.use(clips[0]) as first, cache.use(clips[0]) as second:
            assert first is not second
        assert len(cache) == 1
        assert sum(is_closed(video) for video in opener.videos) == 1


def test_a_replaced_file_is_opened_again(clips: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips[0].read_bytes())
    with VideoCache(open_video) as cache:
        with cache.use(path) as video:
            assert video.num_frames == 30
        path.write_bytes(write_clip(tmp_path, ClipSpec("longer.mp4", num_frames=45)).read_bytes())
        with cache.use(path) as video:
            assert video.num_frames == 45


def test_a_video_whose_use_failed_is_not_kept(clips: list[Path], tmp_path: Path) -> None:
    with VideoCache(open_video) as cache:
        with pytest.raises(KeyError), cache.use(clips[0]):
            raise KeyError("user's own")
        with pytest.raises(VideoError, match="no such file"), cache.use(tmp_path / "missing.mp4"):
            pass
        assert len(cache) == 0
    with pytest.raises(ValueError, match="max_videos must be at least 1, got 0"):
        VideoCache(open_video, max_videos=0)


# -- reading ahead ---------------------------------------------------------------------------------------------------


def loading_threads() -> int:
    return sum(thread.name.startswith("zoomzero-load") for thread in threading.enumerate())


def test_order_is_that_of_the_samples_whatever_thread_is_faster() -> None:
    rng = random.Random(0)
    delays = [rng.uniform(0, 0.01) for _ in range(60)]

    def load(number: int) -> int:
        time.sleep(delays[number])
        return number * number

    assert list(Prefetcher(range(60), load, num_threads=4, ahead=8)) == [(i, i * i) for i in range(60)]
    assert loading_threads() == 0


def test_it_reads_ahead_but_not_further_than_told() -> None:
    loaded: list[int] = []
    for taken, _ in enumerate(Prefetcher(range(20), loaded.append, num_threads=2, ahead=3), start=1):
        time.sleep(0.005)
        assert len(loaded) <= taken + 3
        if taken == 10:
            assert len(loaded) > taken
    assert sorted(loaded) == list(range(20))


def test_loading_overlaps_with_the_consumer() -> None:
    def load(number: int) -> int:
        time.sleep(0.1)
        return number

    begin = time.perf_counter()
    for _ in Prefetcher(range(10), load, num_threads=1, ahead=2):
        time.sleep(0.1)
    # One after the other would take two seconds.
    assert time.perf_counter() - begin < 1.7


def test_an_unreadable_video_comes_out_as_its_error_and_others_are_raised(clips: list[Path], tmp_path: Path) -> None:
    def load(path: Path) -> int:
        with open_video(path) as video:
            return video.num_frames

    results = [loaded for _, loaded in Prefetcher([clips[0], tmp_path / "missing.mp4", clips[1]], load)]
    assert [results[0], results[2]] == [30, 30]
    assert isinstance(results[1], VideoError)

    def fail(number: int) -> int:
        if number == 2:
            raise KeyError("a defect")
        return number

    results_of_five = iter(Prefetcher(range(5), fail))
    assert [next(results_of_five), next(results_of_five)] == [(0, 0), (1, 1)]
    with pytest.raises(KeyError, match="a defect"):
        next(results_of_five)
    assert loading_threads() == 0


def test_stopping_early_leaves_no_thread_behind() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    for sample, _ in Prefetcher(endless(), lambda n: n, ahead=4):
        if sample == 5:
            break
    gc.collect()
    assert loading_threads() == 0
    assert len(taken) <= 12


def test_what_was_loaded_and_not_taken_is_given_back(clips: list[Path]) -> None:
    videos: list[Video] = []

    def load(path: Path) -> Video:
        videos.append(open_video(path))
        return videos[-1]

    before = len(os.listdir("/proc/self/fd"))
    with contextlib.closing(iter(Prefetcher(clips, load, ahead=4, discard=Video.close))) as loaded:
        _, first = next(loaded)
    assert not is_closed(first)
    assert sum(is_closed(video) for video in videos) == len(videos) - 1
    first.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_videos_ahead_leaks_no_handles(clips: list[Path]) -> None:
    def load(path: Path) -> list[int]:
        with open_video(path) as video:
            return numbers_in(video.frames_at([0.1, 0.9])[0])

    before = len(os.listdir("/proc/self/fd"))
    assert all(numbers == [3, 27] for _, numbers in Prefetcher(clips * 5, load, num_threads=3))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("argument", ["num_threads", "ahead"])
def test_bad_arguments(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        Prefetcher([1], str, **{argument: 0})
