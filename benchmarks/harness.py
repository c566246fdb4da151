"""What every benchmark shares: interleaved timing, peak memory in a fresh process, and the result file.

A machine is never quiet. Candidates therefore take turns round by round, and comparisons are the median of the ratios
within a round, which a slow minute does not bend.
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_CHECKOUT = Path(__file__).parent.parent
_MEASURE_FLAG = "--measure-memory"


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one candidate; ``seconds`` keeps every round for ratios.

    cold_ms: median of the first call of a turn, after other candidates' work; the only call where a turn has one.
    cpu_ms: median processor time of all threads, which a machine shared with others bends less.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    cold_ms: float
    cpu_ms: float
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    def speedup_of(self, other: Timing) -> float:
        """How many times longer ``self`` took than ``other``: the median over rounds."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))

    def cpu_speedup_of(self, other: Timing) -> float:
        """As ``speedup_of``, in processor time."""
        pairs = zip(self.cpu_seconds, other.cpu_seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which ``fraction`` of the sorted values lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def seconds_of(run: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of a call whose result is dropped; on a GPU the time between two events on its stream."""
    if torch.device(device).type == "cpu":
        start = time.perf_counter()
        result = run()
        elapsed = time.perf_counter() - start
        del result
        return elapsed
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    repeats: int = 1,
    prepare: Mapping[str, Callable[[], object]] | None = None,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Time every candidate once a round, after ``warmup`` rounds that do not count. Results are dropped at once.

    repeats: calls of a candidate at its turn, of which the last is timed. With 2, a candidate finds the caches, and the
    memory that it just freed, as it left them itself, and not as the candidate before it did, or as a hypervisor that
    takes freed memory back within a second did.
    prepare: by candidate, what is called before it and not timed, e.g. to restore an input that it overwrites.
    device: where they run; GPUs are timed by events.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cold_seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_index in range(warmup + rounds):
        for name, run in candidates.items():
            for repeat in range(repeats):
                if prepare is not None and name in prepare:
                    prepare[name]()
                cpu_start = time.process_time()
                elapsed = seconds_of(run, device)
                cpu_elapsed = time.process_time() - cpu_start
                if repeat == 0 and round_index >= warmup:
                    cold_seconds[name].append(elapsed)
            if round_index >= warmup:
                seconds[name].append(elapsed)
                cpu_seconds[name].append(cpu_elapsed)
    return {
        name: Timing(
            median_ms=statistics.median(values) * 1e3,
            p20_ms=percentile(values, 0.2) * 1e3,
            p80_ms=percentile(values, 0.8) * 1e3,
            cold_ms=statistics.median(cold_seconds[name]) * 1e3,
            cpu_ms=statistics.median(cpu_seconds[name]) * 1e3,
            seconds=tuple(values),
            cpu_seconds=tuple(cpu_seconds[name]),
        )
        for name, values in seconds.items()
    }


def copy_gigabytes_per_second(num_bytes: int = 1 << 28, device: str = "cpu") -> float:
    """Bytes read plus bytes written a second by torch's own copy, on the CPU by the present number of threads."""
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    timing = interleave({"copy": lambda: target.copy_(source)}, rounds=5, device=device)["copy"]
    return 2 * num_bytes / timing.median_ms / 1e6


def matmul_teraflops(side: int, dtype: torch.dtype, device: str = "cpu") -> float:
    """10^12 operations a second of torch's product of two square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timing = interleave({"matmul": lambda: a @ b}, rounds=10, warmup=3, device=device)["matmul"]
    return 2 * side**3 / timing.median_ms / 1e9


def _status_kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"peak memory: /proc/self/status must hold {field}, found none; run on Linux")


def peak_bytes_during(run: Callable[[], object], device: str = "cpu") -> int:
    """Bytes by which the process, or on a GPU torch's allocator, grew at its highest while ``run`` ran.

    The result is included.
    """
    if torch.device(device).type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - held
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
    before = _status_kilobytes("VmRSS")
    result = run()
    after = _status_kilobytes("VmHWM")
    del result
    return (after - before) * 1024


def peak_bytes(script: str, case: str) -> int:
    """Peak memory of one case of a benchmark script, measured in a process of its own (see ``serve_memory``)."""
    done = subprocess.run([sys.executable, script, _MEASURE_FLAG, case], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"peak memory: {script} {case} must exit with 0, got {done.returncode}: {done.stderr[-2000:]}"
        )
    return int(done.stdout.strip().splitlines()[-1])


def serve_memory(measure: Callable[[str], int]) -> bool:
    """In a process that ``peak_bytes`` started: print what ``measure(case)`` returns, and return True."""
    if _MEASURE_FLAG not in sys.argv:
        return False
    print(measure(sys.argv[sys.argv.index(_MEASURE_FLAG) + 1]))
    return True


def git_output(*arguments: str) -> str:
    """What git says in this checkout."""
    done = subprocess.run(["git", *arguments], cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def processor_name() -> str:
    """The processor's model."""
    names = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def document(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of a benchmark, and what and where they were measured."""
    packages = ("zoomzero", "torch", "torchvision", "transformers", "trl", "triton", "numpy")
    return {
        "benchmark": name,
        "commit": git_output("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git_output("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{package: _version(package) for package in packages}},
        "rows": list(rows),
    }


def write_results(name: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """Write benchmarks/results/<name>.json, or the same elsewhere; see `document`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document(name, rows), indent=1) + "\n", encoding="utf-8")
    return path


def timing_row(timing: Timing) -> dict[str, float]:
    """The figures of a timing that go into a result file."""
    return {key: round(value, 4) for key, value in asdict(timing).items() if not isinstance(value, tuple)}


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys as an aligned table."""
    if not rows:
        return
    cells = [[str(key) for key in rows[0]], *[[_cell(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
