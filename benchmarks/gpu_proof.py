"""Proves the kernels on the card at hand, stage by stage, each leaving its JSON: `make gpu-proof`.

    STAGES="ops ncu" make gpu-proof          # some of them
    python3 benchmarks/gpu_proof.py --out runs/proof

Needs torch, and on a GPU nvcc, cmake, ninja, scikit-build-core and pybind11 to build with; no network. Without a GPU
the same stages run on the CPU at tiny sizes, which proves this script and measures nothing. A stage that fails is
written down and the next one begins; the exit status then is 1. A missed bar is printed and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import print_table, write_results

from zoomzero.bench.timing import interleave, measured_ceilings, peak_bytes_during, timing_row

CHECKOUT = Path(__file__).parent.parent
# Below ten minutes, so that a stage fits one command where commands are cut there.
LIMIT_SECONDS = 530
Rows = list[dict[str, Any]]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _run(command: Sequence[str | Path], **environment: str) -> tuple[int, str]:
    """Exit status and the last lines of the output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout[-4000:]


def build(out: Path) -> Rows:
    """The native module for the card at hand into OUT/site, which later stages import, and the card's ceilings."""
    rows: Rows = []
    if device() == "cuda":
        major, minor = torch.cuda.get_device_capability()
        command = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", out / "site"]
        started = time.perf_counter()
        status, output = _run(
            [sys.executable, *command, "--upgrade", "."],
            ZOOMZERO_CUDA="ON",
            ZOOMZERO_TRITON="ON",
            ZOOMZERO_CUDA_ARCHS=f"{major}{minor}",
        )
        if status != 0:
            raise RuntimeError(f"build: pip must exit with 0, got {status}: {output}")
        rows.append({"measure": "build", "value": round(time.perf_counter() - started, 1), "unit": "s"})
    copied, side = (1 << 32, 8192) if device() == "cuda" else (1 << 24, 256)
    ceilings = measured_ceilings(device(), copied, side)
    return rows + [
        {"measure": name, "value": value, "unit": "GB/s" if name == "copy" else "TFLOP/s"}
        for name, value in ceilings.items()
    ]


def _ceilings(out: Path) -> dict[str, float]:
    """The ceilings that the stage "build" measured."""
    path = out / "build.json"
    if not path.is_file():
        raise RuntimeError(f"gpu_proof: stage build must have run into {out}, found no {path.name}; add it to STAGES")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["measure"]: row["value"] for row in rows if row["measure"] != "build"}


def _place(full_size: bool) -> Any:
    from zoomzero.bench.case import Place

    return Place(device(), "gpu" if full_size else "tiny")


def tests(out: Path) -> Rows:
    """The tests marked cuda under both kinds of launch; on the CPU they skip."""
    marked = [
        path
        for path in sorted((CHECKOUT / "tests" / "kernels").glob("test_*.py"))
        if "mark.cuda" in path.read_text(encoding="utf-8")
    ]
    rows: Rows = []
    for launch in ("jit", "embedded"):
        status, output = _run(
            # -P: not the checkout's own package, which is not built.
            [sys.executable, "-P", "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", *marked],
            ZOOMZERO_TRITON_KERNELS=launch,
            ZOOMZERO_REQUIRE_CUDA="1" if device() == "cuda" else "0",
        )
        rows.append({"launch": launch, "passed": status == 0, "summary": output.strip().splitlines()[-1]})
        if status != 0:
            raise RuntimeError(f"tests: the tests marked cuda must pass with {launch} launches, got {output}")
    return rows


def sanitizer(out: Path) -> Rows:
    """Every op on tiny sizes under compute-sanitizer's memory, race and initialisation checks; bare on the CPU."""
    watched = [sys.executable, Path(__file__), "--every-op-once"]
    tool = shutil.which("compute-sanitizer")
    if device() == "cpu" or tool is None:
        status, output = _run(watched)
        reason = "no GPU" if device() == "cpu" else "no compute-sanitizer on PATH"
        rows: Rows = [{"tool": f"none: {reason}", "passed": status == 0, "summary": output.strip()}]
    else:
        rows = []
        for check in ("memcheck", "racecheck", "initcheck"):
            command = [tool, "--tool", check, "--error-exitcode", "7", *watched]
            # Without torch's own allocator every tensor is an allocation that the tool can tell from its neighbours.
            status, output = _run(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
            rows.append({"tool": check, "passed": status == 0, "summary": output.strip()[-300:]})
    if not all(row["passed"] for row in rows):
        raise RuntimeError(f"sanitizer: every op must run clean, got {rows}")
    return rows


def synchronisations_of(run: Callable[[], object]) -> int | None:
    """How often torch waits for the GPU during a call; None on the CPU."""
    if device() == "cpu":
        return None
    run()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def ops(out: Path) -> Rows:
    """Every op beside eager torch, torch.compile and installed rivals, as a share of the measured ceiling."""
    from zoomzero.bench.cases import OPS
    from zoomzero.bench.measure import share_of_ceiling

    place = _place(full_size=device() == "cuda")
    tiny = place.scale == "tiny"
    rows: Rows = []
    ceilings = _ceilings(out)
    for cases in OPS:
        for case in cases(place):
            timings = interleave(case.candidates, rounds=3 if tiny else 20, warmup=1 if tiny else 3, device=device())
            for name, timing in timings.items():
                share = share_of_ceiling(case, timing, ceilings)
                ours = name == "ours"
                rows.append(
                    {
                        "op": case.op,
                        "size": case.size,
                        "candidate": name,
                        **timing_row(timing),
                        "times_ours": round(timing.speedup_of(timings["ours"]), 3),
                        "share_of_ceiling": share,
                        "bar": case.bar if ours else None,
                        "peak_megabytes": round(peak_bytes_during(case.candidates[name], device()) / 1e6, 2),
                        "synchronisations": synchronisations_of(case.candidates[name]) if ours else None,
                        "synchronisations_allowed": case.synchronisations if ours else None,
                    }
                )
    return rows


# Of each kernel: bytes from and to memory, hit rate of L2, share of cycles that issue, passes over shared memory.
NCU_METRICS = (
    "gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,lts__t_sector_hit_rate.pct,"
    "sm__inst_issued.avg.pct_of_peak_sustained_active,l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"
)
NCU_KERNELS = ("policy_rows_kernel", "logp_rows_kernel", "frame_resample_kernel", "token_resample_kernel")


def ncu(out: Path) -> Rows:
    """Nsight Compute on four kernels at full size."""
    tool = shutil.which("ncu")
    if device() == "cpu" or tool is None:
        return [{"kernel": name, "output": "no GPU" if device() == "cpu" else "no ncu on PATH"} for name in NCU_KERNELS]
    rows: Rows = []
    for name in NCU_KERNELS:
        options = ["--clock-control", "none", "--csv", "--metrics", NCU_METRICS, "--launch-count", "2"]
        watched = [sys.executable, Path(__file__), "--every-op-once", "--full-size"]
        status, output = _run([tool, *options, "--kernel-name", f"regex:{name}", *watched])
        if status != 0:
            raise RuntimeError(f"ncu: must exit with 0 for {name}, got {status}: {output}")
        table = [line for line in output.splitlines() if line.startswith('"')]
        rows.append({"kernel": name, "output": "\n".join(table)})
    return rows


# A stage is given the folder of results and returns rows, which are written to <its name>.json there. In this order.
STAGES: Mapping[str, Callable[[Path], Rows]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "ops": ops,
    "ncu": ncu,
}


def bars_missed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of the stage "ops" whose share of the ceiling, or number of synchronisations, misses its bar."""
    missed = []
    for row in rows:
        if row["bar"] is not None and row["share_of_ceiling"] < row["bar"]:
            missed.append(f"{row['op']} {row['size']}: {row['share_of_ceiling']:.2f} of the ceiling, bar {row['bar']}")
        allowed = row["synchronisations_allowed"]
        if allowed is not None and (row["synchronisations"] or 0) > allowed:
            missed.append(f"{row['op']} {row['size']}: {row['synchronisations']} synchronisations, bar {allowed}")
    return missed


def _environment(out: Path) -> dict[str, str]:
    """For a stage in a process of its own: what was built here comes before what is installed."""
    site = out / "site"
    paths = [str(site)] if site.is_dir() else []
    return {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}


def prove(names: Sequence[str], out: Path) -> int:
    """Run stages, each in a process of its own and within the limit; the number of those that failed."""
    failed = 0
    for name in names:
        print(f"== {name} on {device()}", flush=True)
        command = [sys.executable, str(Path(__file__)), "--stage", name, "--out", str(out)]
        try:
            status = subprocess.run(
                command, env={**os.environ, **_environment(out)}, timeout=LIMIT_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
            write_results(name, [{"error": f"took more than {LIMIT_SECONDS} s"}], out)
        failed += status != 0
        print(f"== {name}: {'done' if status == 0 else 'FAILED'}", flush=True)
    path = out / "ops.json"
    if "ops" in names and path.is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for line in bars_missed(rows) if "error" not in rows[0] else []:
            print(f"bar missed: {line}" + ("" if device() == "cuda" else " (on the CPU, where bars mean nothing)"))
    return failed


def run_stage(name: str, out: Path) -> None:
    """One stage in this process: its rows, or its error, to OUT/<name>.json."""
    try:
        rows = STAGES[name](out)
    except Exception as error:
        write_results(name, [{"error": f"{type(error).__name__}: {error}"}], out)
        raise
    print_table(rows)
    print(f"written to {write_results(name, rows, out)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKOUT / "runs" / "gpu_proof", help="folder of the results")
    parser.add_argument("--stage", choices=list(STAGES), help="run one stage in this process")
    parser.add_argument("--every-op-once", action="store_true", help="what sanitizer and ncu watch")
    parser.add_argument("--full-size", action="store_true", help="with --every-op-once: sizes of training")
    options = parser.parse_args()
    if options.every_op_once:
        from zoomzero.bench.cases import every_op_once

        print(f"{every_op_once(_place(options.full_size))} cases ran on {device()}")
        return
    out = options.out.resolve()
    if options.stage is not None:
        return run_stage(options.stage, out)
    names = os.environ.get("STAGES", "").replace(",", " ").split() or list(STAGES)
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        sys.exit(f"gpu_proof: STAGES must name some of {', '.join(STAGES)}, got {', '.join(unknown)}; correct it")
    if prove(names, out):
        sys.exit(1)


if __name__ == "__main__":
    main()
