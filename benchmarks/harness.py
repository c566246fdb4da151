"""What the scripts here share: peak memory in a fresh process and the result file; times come from `zoomzero.bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).parent.parent
# Behind what is installed: the first stage of gpu_proof.py runs before anything is.
sys.path.append(str(_CHECKOUT))

from zoomzero.bench.machine import machine, versions  # noqa: E402

RESULTS = Path(__file__).parent / "results"
_MEASURE_FLAG = "--measure-memory"


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


def document(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of a benchmark, and what and where they were measured."""
    return {
        "benchmark": name,
        "commit": git_output("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git_output("status", "--porcelain", "--untracked-files=no")),
        "machine": machine(),
        "versions": versions(),
        "rows": list(rows),
    }


def write_results(name: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> Path:
    """Write benchmarks/results/<name>.json, or the same elsewhere; see `document`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document(name, rows), indent=1) + "\n", encoding="utf-8")
    return path


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
