"""Measure cases: first that all candidates give the same, then their times side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zoomzero.bench.case import Case, Place, Scale, absent_rivals, dtype_name
from zoomzero.bench.cases import OPS, WITH_VIDEO
from zoomzero.bench.machine import machine, versions
from zoomzero.bench.timing import Timing, interleave, measured_ceilings, timing_row

Row = dict[str, Any]

# Candidates that need no package but torch, and must run everywhere.
PLAIN = ("ours", "eager", "dense mask", "loop over responses")


@dataclass(frozen=True)
class BenchOptions:
    """device: "cpu", "cuda"; quick: three rounds without torch.compile; only: ops whose name holds one of these."""

    device: str
    quick: bool = False
    only: tuple[str, ...] = ()

    @property
    def rounds(self) -> int:
        """Turns that count."""
        return 3 if self.quick else 10

    def wants(self, op: str) -> bool:
        """Whether an op is measured."""
        return not self.only or any(name in op for name in self.only)


def ceilings(device: str) -> dict[str, float]:
    """What this machine can do at best; see `measured_ceilings`."""
    on_cpu = torch.device(device).type == "cpu"
    # Far larger than any cache, and as large as what is measured here.
    return measured_ceilings(device, num_bytes=1 << 28 if on_cpu else 1 << 32, side=1024 if on_cpu else 8192)


def share_of_ceiling(case: Case, timing: Timing, ceilings: Mapping[str, float]) -> float | None:
    """The least that must be moved or computed, over what the machine can in that time; None where nothing is known.

    On a CPU it exceeds 1 where what is moved lies in the caches.
    """
    if case.moved_bytes is not None:
        return round(case.moved_bytes / timing.median_ms / 1e6 / ceilings["copy"], 4)
    if case.operations is not None:
        return round(case.operations / timing.median_ms / 1e9 / ceilings[f"matmul {dtype_name(case.dtype)}"], 4)
    return None


def measure(options: BenchOptions, at_best: Mapping[str, float]) -> Iterator[list[Row]]:
    """The rows of one case after the other; ours is the first of each.

    A row has "op", "size", "candidate" and either the figures of `timing_row` with "times_ours" and "share_of_ceiling",
    or "error". An error of a rival is told and goes on; see `failures` for those that count.
    """
    scale: Scale = "cpu" if torch.device(options.device).type == "cpu" else "gpu"
    place = Place(options.device, scale, with_compile=not options.quick)
    for cases, ops in (OPS | WITH_VIDEO).items():
        if not any(options.wants(op) for op in ops):
            continue
        for case in cases(place):
            if options.wants(case.op):
                yield _rows(case, options, at_best)


def _rows(case: Case, options: BenchOptions, at_best: Mapping[str, float]) -> list[Row]:
    working, errors = _checked(case)
    timings = interleave(working, rounds=options.rounds, device=options.device) if "ours" in working else {}
    rows: list[Row] = []
    for name in case.candidates:
        row: Row = {"op": case.op, "size": case.size, "candidate": name}
        if name in errors:
            row["error"] = errors[name]
        elif name in timings:
            timing = timings[name]
            row |= timing_row(timing)
            row["times_ours"] = round(timing.speedup_of(timings["ours"]), 3)
            row["share_of_ceiling"] = share_of_ceiling(case, timing, at_best)
        rows.append(row)
    return rows


def _checked(case: Case) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, str]]:
    """Candidates that run and give what ours gives, and what is wrong with the others."""
    working: dict[str, Callable[[], torch.Tensor]] = {}
    errors: dict[str, str] = {}
    truth: torch.Tensor | None = None
    for name, run in case.candidates.items():
        try:
            found = run().detach().float()
        except Exception as error:  # whatever a rival does here must not end the measurement
            errors[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            continue
        truth = found if truth is None else truth
        difference = float((found - truth).abs().max()) if found.shape == truth.shape else float("inf")
        if difference <= case.tolerance * (1.0 + float(truth.abs().max())):
            working[name] = run
        else:
            errors[name] = f"differs from ours by {difference:.3g}, allowed {case.tolerance:.3g}"
    return working, errors


def failures(rows: list[Row]) -> list[str]:
    """What makes a run a failure: ours did not run, or a way that is plain torch disagrees with it."""
    return [
        f"{row['op']} {row['size']}, {row['candidate']}: {row['error']}"
        for row in rows
        if "error" in row and row["candidate"] in PLAIN
    ]


def document(options: BenchOptions, at_best: Mapping[str, float], rows: list[Row]) -> dict[str, Any]:
    """What is written as JSON: where, with what, and the rows."""
    return {
        "benchmark": "bench",
        "device": options.device,
        "quick": options.quick,
        "machine": machine(),
        "versions": versions(),
        "ceilings": {name: round(value, 4) for name, value in at_best.items()},
        "not_installed": absent_rivals(),
        "rows": rows,
    }
