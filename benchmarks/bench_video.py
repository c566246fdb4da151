"""Reading a ten-minute video for a coarse pass and one zoom: time and peak memory beside the paper's way.

Plan: coarse pass at 0.5 fps to 8192 visual tokens, then a zoom of 10 s at 4 fps to 4096 tokens; 1280 x 720 at 30 fps,
H.264. Every way runs in a process of its own, in turn, several times; the table gives medians.

- ours: open_video, plan_frames, frame_resample through VideoInputs.read; one opened file for both passes.
- paper: decord reads every 2 fps frame at full size into memory, torchvision's bicubic and the transformers processor
  make patches; for the zoom the file is read a second time the same way, and the frames inside the span are kept.
- paper, seeking zoom: the same, but the second reading decodes the frames of the zoom only; kinder than the paper's
  code.
- torchcodec (pip install torchcodec; FFmpeg's libraries from the system): VideoDecoder, seeking exactly, on our plan's
  times, with one thread and with one a core; what follows decoding is ours.
- transformers: transformers' own load_video (PyAV back end) on our plan's frame numbers, then as above.

Then ours alone on 1, 5 and 20 minutes, to show how time and memory grow. Peak memory is the growth of the process above
its imports and a warm-up, the largest result included. Clips are one minute of drifting noise and moving boxes, encoded
here and repeated by copying packets. Results go to benchmarks/results/video.json; a quick run's stay in .cache, so that
they never stand for the official ones. On two cores the whole takes about 25 minutes, most of it the paper's way.

    python benchmarks/bench_video.py [--repeats 3] [--minutes 10] [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from harness import git_output

from zoomzero.bench.machine import processor_name

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ROOT / ".cache" / "bench_video"
RESULTS = ROOT / "benchmarks" / "results" / "video.json"
QUICK_RESULTS = CLIPS / "quick.json"

HEIGHT, WIDTH, RATE = 720, 1280, 30
COARSE_TOKENS, COARSE_FPS = 8192, 0.5
ZOOM_TOKENS, ZOOM_FPS, ZOOM_SECONDS = 4096, 4.0, 10.0
PAPER_FPS = 2.0
HAS_DECORD = importlib.util.find_spec("decord") is not None
TORCHCODEC_CHUNK = 16


def has_torchcodec() -> bool:
    """Whether it is installed and finds FFmpeg's libraries."""
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        print("torchcodec is installed and does not load (it needs FFmpeg 4 to 8 of the system): it is left out")
        return False
    return True


# -- clips -----------------------------------------------------------------------------------------------------------


def encode_minute(path: Path, gop: int) -> None:
    """One minute of H.264 with B-frames: a drifting texture and moving boxes."""
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 255, (90, 320, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "28", "bf": "3"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        # One slice a frame, as x264 and cameras make them; PyAV's default would cut frames into one a core.
        stream.codec_context.thread_type = "FRAME"
        for number in range(60 * RATE):
            left = number * 2 % WIDTH
            pixels = np.ascontiguousarray(texture[:HEIGHT, left : left + WIDTH])
            pixels[100:220, number * 7 % 1100 :][:, :120] = (255, number % 255, 0)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode())


def repeat(source: Path, target: Path, times: int) -> None:
    """The packets of a one-minute clip, `times` times in a row."""
    with av.open(str(target), "w") as out:
        stream = None
        for turn in range(times):
            with av.open(str(source)) as container:
                stream = stream or out.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.pts is None or packet.dts is None:
                        continue
                    shift = round(turn * 60 / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    out.mux(packet)


def clip(gop: int, minutes: int) -> Path:
    CLIPS.mkdir(parents=True, exist_ok=True)
    minute, whole = CLIPS / f"gop{gop}_1min.mp4", CLIPS / f"gop{gop}_{minutes}min.mp4"
    if not minute.exists():
        print(f"encoding one minute with a GOP of {gop}", flush=True)
        encode_minute(minute, gop)
    if not whole.exists():
        repeat(minute, whole, minutes)
    return whole


def make_warm_up(minute: Path) -> None:
    """The first 15 seconds of a clip, on which every process warms up."""
    warm = CLIPS / "warm.mp4"
    if warm.exists():
        return
    with av.open(str(minute)) as source, av.open(str(warm), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.pts * packet.time_base < 15:
                packet.stream = stream
                out.mux(packet)


# -- the ways --------------------------------------------------------------------------------------------------------


def zoom_span(duration: float) -> tuple[float, float]:
    middle = duration * 0.6
    return middle, middle + ZOOM_SECONDS


def plans(duration: float) -> tuple[Any, Any]:
    from zoomzero.budget import plan_frames

    coarse = plan_frames(duration, HEIGHT, WIDTH, budget_tokens=COARSE_TOKENS, sample_fps=COARSE_FPS)
    zoom = plan_frames(
        duration, HEIGHT, WIDTH, budget_tokens=ZOOM_TOKENS, sample_fps=ZOOM_FPS, spans=[zoom_span(duration)]
    )
    return coarse, zoom


def our_inputs() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from zoomzero.inputs import VIDEO_PAD, VideoInputs

    vocabulary = Tokenizer(models.WordLevel({"<unk>": 0, VIDEO_PAD: 1}, unk_token="<unk>"))
    return VideoInputs(PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="<unk>"))


def ours(path: Path) -> Iterator[torch.Tensor]:
    from zoomzero.video import open_video

    inputs = our_inputs()
    with open_video(path, backend="pyav") as video:
        for plan in plans(video.duration):
            yield inputs.read(video, plan).pixel_values_videos


def patches(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [n, H, W, 3] -> patches, by torchvision's antialiased bicubic and the transformers processor."""
    from torchvision.transforms.v2.functional import InterpolationMode, resize
    from transformers import Qwen2VLVideoProcessor

    small = resize(frames.permute(0, 3, 1, 2), list(size), InterpolationMode.BICUBIC, antialias=True)
    processor = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    result: torch.Tensor = processor(videos=[small], return_tensors="pt").pixel_values_videos
    return result


def paper(path: Path, seeking_zoom: bool = False) -> Iterator[torch.Tensor]:
    import decord

    def read(fps: float, span: tuple[float, float] | None) -> tuple[torch.Tensor, float]:
        reader = decord.VideoReader(str(path))
        count, rate = len(reader), reader.get_avg_fps()
        first, last = (0.0, count / rate) if span is None else span
        numbers = np.clip(np.arange(first, last, 1 / fps) * rate, 0, count - 1).round().astype(int)
        return torch.from_numpy(reader.get_batch(numbers.tolist()).asnumpy()), count / rate

    frames, duration = read(PAPER_FPS, None)
    coarse_plan, zoom_plan = plans(duration)
    yield patches(frames[[round(t * PAPER_FPS) for t in coarse_plan.timestamps]], coarse_plan.size)
    del frames
    span = zoom_span(duration)
    if seeking_zoom:
        frames, _ = read(ZOOM_FPS, span)
    else:
        frames, _ = read(PAPER_FPS, None)
        frames = frames[int(span[0] * PAPER_FPS) : int(np.ceil(span[1] * PAPER_FPS))]
    yield patches(frames, zoom_plan.size)


def torchcodec(path: Path, num_threads: int) -> Iterator[torch.Tensor]:
    from torchcodec.decoders import VideoDecoder

    from zoomzero_kernels import frame_resample

    geometry = our_inputs().geometry
    shape = {
        name: getattr(geometry, name) for name in ("mean", "std", "patch_size", "merge_size", "temporal_patch_size")
    }
    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=num_threads, seek_mode="exact")
    for plan in plans(float(decoder.metadata.end_stream_seconds or 0)):
        times = list(plan.timestamps)
        parts = [
            frame_resample(
                decoder.get_frames_played_at([t + 1e-6 for t in times[first : first + TORCHCODEC_CHUNK]]).data,
                size=plan.size,
                dtype=torch.float32,
                **shape,
            )
            for first in range(0, len(times), TORCHCODEC_CHUNK)
        ]
        yield torch.cat(parts)


def transformers_way(path: Path) -> Iterator[torch.Tensor]:
    from transformers.video_utils import load_video

    with av.open(str(path)) as container:
        duration = container.streams.video[0].frames / RATE
    for plan in plans(duration):
        numbers = np.array([int(t * RATE + 1e-6) for t in plan.timestamps])
        # load_video's annotation leaves out paths, which it takes.
        source: Any = str(path)
        frames, _ = load_video(source, backend="pyav", sample_indices_fn=lambda metadata, n=numbers, **_: n)
        yield patches(torch.from_numpy(np.asarray(frames)), plan.size)


RUNNERS: dict[str, Callable[[Path], Iterator[torch.Tensor]]] = {
    "ours": ours,
    "paper": paper,
    "paper_seeking_zoom": lambda path: paper(path, seeking_zoom=True),
    "torchcodec_1_thread": lambda path: torchcodec(path, 1),
    "torchcodec_cores": lambda path: torchcodec(path, os.cpu_count() or 1),
    "transformers": transformers_way,
}


# -- measuring -------------------------------------------------------------------------------------------------------


def memory_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"bench_video: /proc/self/status has no {field}; this benchmark needs Linux")


def run_one(way: str, path: Path) -> dict[str, float]:
    """Runs in a process of its own: imports are warmed on a second of video before the clock starts."""
    warm = CLIPS / "warm.mp4"
    for _ in RUNNERS[way](warm):
        pass
    Path("/proc/self/clear_refs").write_text("5")
    before, wall, cpu = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
    # The coarse patches are gone before the zoom begins, as when a model has consumed them.
    largest, ends = 0, [wall]
    for result in RUNNERS[way](path):
        ends.append(time.perf_counter())
        largest = max(largest, result.numel() * result.element_size())
        del result
    measured = {
        "wall_seconds": time.perf_counter() - wall,
        "coarse_seconds": ends[1] - ends[0],
        "zoom_seconds": ends[2] - ends[1],
        "cpu_seconds": time.process_time() - cpu,
        "peak_growth_bytes": memory_bytes("VmHWM") - before,
    }
    return {**measured, "largest_result_bytes": largest}


def measure(way: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--clip", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bench_video: {way} failed on {path.name}: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def check_same_result(path: Path, way: str) -> float:
    """Largest share of values that differ by more than two grey levels between ours and another's way on one plan."""
    worst = 0.0
    two_levels = 2.01 / 255 / 0.26
    for mine, theirs in zip(ours(path), RUNNERS[way](path), strict=True):
        if mine.shape != theirs.shape:
            raise RuntimeError(f"bench_video: results differ in shape: {tuple(mine.shape)} and {tuple(theirs.shape)}")
        worst = max(worst, float(((mine - theirs).abs() > two_levels).float().mean()))
    if worst > 0.001:
        raise RuntimeError(f"bench_video: {worst:.4%} of the values differ; the ways do not read the same frames")
    return worst


def median_row(way: str, gop: int, minutes: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"way": way, "gop": gop, "minutes": minutes, "runs": len(runs)}
    row |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    walls = sorted(run["wall_seconds"] for run in runs)
    return row | {"wall_seconds_min": walls[0], "wall_seconds_max": walls[-1]}


def compare(gop: int, minutes: int, repeats: int) -> list[dict[str, Any]]:
    path = clip(gop, minutes)
    missing = tuple(name for name, there in (("paper", HAS_DECORD), ("torchcodec", has_torchcodec())) if not there)
    ways = [way for way in RUNNERS if not way.startswith(missing)]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            runs[way].append(measure(way, path))
            print(f"  GOP {gop}, {minutes} min, {way}: {runs[way][-1]['wall_seconds']:.1f} s", flush=True)
    return [median_row(way, gop, minutes, runs[way]) for way in ways]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Ratios to ours, the first row of each GOP and length. Processor time is the steadier on a busy machine."""
    base: dict[tuple[int, int], dict[str, Any]] = {}
    print(
        f"{'GOP':>4} {'min':>4} {'way':<20} {'wall s':>8} {'coarse':>7} {'zoom':>6} {'cpu s':>8} {'peak MB':>8} "
        f"{'of it result':>12} {'x wall':>7} {'x cpu':>7} {'x memory':>8}"
    )
    for row in rows:
        ours_row = base.setdefault((row["gop"], row["minutes"]), row)
        ratios = [row[key] / ours_row[key] for key in ("wall_seconds", "cpu_seconds", "peak_growth_bytes")]
        print(
            f"{row['gop']:>4} {row['minutes']:>4} {row['way']:<20} {row['wall_seconds']:>8.1f} "
            f"{row['coarse_seconds']:>7.2f} {row['zoom_seconds']:>6.2f} "
            f"{row['cpu_seconds']:>8.1f} {row['peak_growth_bytes'] / 1e6:>8.0f} "
            f"{row['largest_result_bytes'] / 1e6:>12.0f} {ratios[0]:>7.1f} {ratios[1]:>7.1f} {ratios[2]:>8.1f}"
        )


def facts() -> dict[str, Any]:
    names = ["torch", "torchvision", "transformers", "av", "numpy"] + ["decord"] * HAS_DECORD
    names += ["torchcodec"] * has_torchcodec()
    return {
        "commit": git_output("rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "uncommitted_changes": bool(git_output("status", "--porcelain", "--untracked-files=no")),
        "machine": f"{processor_name()}, {torch.get_num_threads()} threads, no GPU used",
        "load_average": os.getloadavg(),
        "versions": {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one minute, once, and no table of growth with length")
    parser.add_argument("--way", choices=list(RUNNERS), help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run_one(args.way, args.clip)))
        return
    minutes, repeats = (1, 1) if args.quick else (args.minutes, args.repeats)
    target = QUICK_RESULTS if args.quick else RESULTS
    short = clip(30, 1)
    make_warm_up(short)
    rows: list[dict[str, Any]] = []
    if not HAS_DECORD:
        print("decord is not installed (pip install decord): the paper's way is left out")
    difference = check_same_result(short, "transformers")
    if has_torchcodec():
        check_same_result(short, "torchcodec_1_thread")
    print(f"same plan, ours and transformers': {difference:.4%} of the values differ by more than two grey levels")
    for gop in (250, 30):
        rows += compare(gop, minutes, repeats)
        write_results(rows, difference, target)
    for length in () if args.quick else (1, 5, 20):
        rows.append(median_row("ours", 250, length, [measure("ours", clip(250, length)) for _ in range(repeats)]))
        write_results(rows, difference, target)
    print_table(rows)


def write_results(rows: list[dict[str, Any]], difference: float, target: Path) -> None:
    """Written after every group of rows: the paper's way may run out of memory in the next."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**facts(), "values_that_differ": difference, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
