"""Where the time of reading a video goes, and how much of it is FFmpeg's own: an hour, and ten minutes.

- hour: the coarse pass over one hour of 720p (the clip of bench_video.py, a key frame every 250 frames) to 8192 tokens
  at 2 frames per second, opening included, by key frames and exactly.
- ten minutes: the coarse pass and the zoom of bench_video.py, ours and TorchCodec's, each with one decoder thread, so
  that all processor time is the calling thread's; and TorchCodec with a thread a core.

Parts are processor time of the threads that do them: "table" (all packets read), "decode" (FFmpeg's decoder, as PyAV
calls it: what no reader of the same frames can do without), "rgb" (FFmpeg's conversion), "resample" (patches).
Every case runs in a process of its own, in turn, with the file in the page cache; rows are medians.

    python benchmarks/bench_video_parts.py [--rounds 3] [--cases hour_keyframes ...]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import bench_video
import torch
from harness import print_table, write_results

from zoomzero import patches
from zoomzero.budget import plan_frames
from zoomzero.inputs import FramePlanner
from zoomzero.settings import PassSettings, ZoomSettings
from zoomzero.video import open_video
from zoomzero.video.frame_reader import FrameReader
from zoomzero.video.picture import Picture
from zoomzero.video.segments import SegmentReader

GOP = 250


class Parts:
    """Processor seconds by part, summed over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count what calls of `owner.name` take."""
        called = getattr(owner, name)

        @functools.wraps(called)
        def counted(*args: Any, **more: Any) -> Any:
            started = time.thread_time()
            try:
                return called(*args, **more)
            finally:
                with self._lock:
                    self.seconds[part] += time.thread_time() - started

        setattr(owner, name, counted)


def hour(frame_choice: str) -> Iterator[torch.Tensor]:
    """The coarse pass over an hour."""
    coarse = PassSettings(budget_tokens=bench_video.COARSE_TOKENS, frame_choice=frame_choice)
    planner = FramePlanner(ZoomSettings(coarse=coarse))
    with open_video(bench_video.clip(GOP, 60), backend="pyav") as video:
        yield planner.read(video, planner.plan(video)).pixel_values_videos


def ours_one_thread() -> Iterator[torch.Tensor]:
    """Coarse pass and zoom of ten minutes by one decoder."""
    inputs = bench_video.our_inputs()
    with open_video(bench_video.clip(GOP, 10), backend="pyav", num_threads=1) as video:
        for plan in bench_video.plans(video.duration):
            yield inputs.read(video, plan).pixel_values_videos


CASES: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
    "hour_keyframes": lambda: hour("keyframes"),
    "hour_exact": lambda: hour("exact"),
    "ten_minutes_ours": ours_one_thread,
    "ten_minutes_torchcodec": lambda: bench_video.torchcodec(bench_video.clip(GOP, 10), 1),
    "ten_minutes_torchcodec_cores": lambda: bench_video.torchcodec(bench_video.clip(GOP, 10), os.cpu_count() or 1),
}


def run_case(name: str) -> dict[str, Any]:
    """In a process of its own."""
    path = bench_video.clip(GOP, 60 if name.startswith("hour") else 10)
    path.read_bytes()
    # Imports, and the kernels' tables, are there before the clock starts.
    plan_frames(60.0, bench_video.HEIGHT, bench_video.WIDTH, budget_tokens=64, sample_fps=1.0)
    bench_video.make_warm_up(bench_video.clip(GOP, 1))
    for _ in bench_video.ours(bench_video.CLIPS / "warm.mp4"):
        pass
    parts = Parts()
    parts.watch(FrameReader, "scan", "table")
    parts.watch(FrameReader, "_decoded", "decode")
    parts.watch(SegmentReader, "_decode", "decode")
    parts.watch(Picture, "pixels", "rgb")
    parts.watch(patches, "frame_resample", "resample")
    wall, ends, rows = time.perf_counter(), [time.process_time()], 0
    for result in CASES[name]():
        ends.append(time.process_time())
        rows += len(result)
        del result
    measured = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": ends[-1] - ends[0], "patches": rows}
    if len(ends) > 2:
        measured |= {"coarse_cpu_seconds": ends[1] - ends[0], "zoom_cpu_seconds": ends[2] - ends[1]}
    if "torchcodec" not in name:
        measured |= {f"{part}_seconds": seconds for part, seconds in parts.seconds.items()}
        measured["decode_share"] = parts.seconds["decode"] / measured["cpu_seconds"]
    return measured


def measure(name: str) -> dict[str, Any]:
    """A case in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--case", name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bench_video_parts: {name} failed: {done.stderr.strip().splitlines()[-1:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of reading a video goes.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(run_case(options.case)))
        return
    there = bench_video.has_torchcodec()
    cases = [name for name in options.cases if there or "torchcodec" not in name]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    load = os.getloadavg()[0]
    for _ in range(options.rounds):
        for name in cases:
            runs[name].append(measure(name))
    rows = [
        {"case": name, "runs": len(found)}
        | {key: round(statistics.median(run[key] for run in found), 3) for key in found[0]}
        | {"load_at_start": load}
        for name, found in runs.items()
    ]
    for row in rows:
        print_table([row])
    print(write_results("video_parts", rows))


if __name__ == "__main__":
    main()
