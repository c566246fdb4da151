"""Times, peak memory and what the machine can do at best, for `zoomzero bench` and the scripts in `benchmarks/`.

A machine is never quiet. Candidates therefore take turns round by round, and comparisons are the median of the ratios
within a round, which a slow minute does not bend.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


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
    """Bytes read plus bytes written a second by torch's own copy, on the CPU by the present number of threads.

    The best of several rounds, as for `matmul_teraflops`: what disturbs a round takes away from what can be done.
    """
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    timing = interleave({"copy": lambda: target.copy_(source)}, rounds=5, device=device)["copy"]
    return 2 * num_bytes / min(timing.seconds) / 1e9


def matmul_teraflops(side: int, dtype: torch.dtype, device: str = "cpu") -> float:
    """10^12 operations a second of torch's product of two square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timing = interleave({"matmul": lambda: a @ b}, rounds=10, warmup=3, device=device)["matmul"]
    return 2 * side**3 / min(timing.seconds) / 1e12


def measured_ceilings(device: str, num_bytes: int, side: int) -> dict[str, float]:
    """What the machine can do at best: "copy" in GB/s, and "matmul bfloat16" and "matmul float32" in TFLOP/s.

    num_bytes: of the copy; side: of the matrices.
    """
    products = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    rates = {f"matmul {name}": matmul_teraflops(side, dtype, device) for name, dtype in products.items()}
    return {"copy": copy_gigabytes_per_second(num_bytes, device), **rates}


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


def timing_row(timing: Timing) -> dict[str, float]:
    """The figures of a timing that go into a result file."""
    return {key: round(value, 4) for key, value in asdict(timing).items() if not isinstance(value, tuple)}
