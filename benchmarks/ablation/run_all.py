"""What each part of the method contributes, on the synthetic clips: `make ablation` runs this.

Every finished run is one line of JSON in the file of --out; runs that lie there are not made again, so that a set can
be stopped at any time and gone on with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import analysis
import plan
from tqdm import tqdm

from zoomzero.synthetic import make_clips

HERE = Path(__file__).parent
PUBLISHED = HERE.parent / "results" / "ablation.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=plan.SETS, default="reduced", help="runs to make (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side, a core each")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation/runs.jsonl"), help="file of the finished runs")
    parser.add_argument("--clips", type=Path, default=Path(".cache/ablation"), help="folder of the clips")
    parser.add_argument("--second", type=Path, default=Path("runs/ablation/second"), help="second start checkpoint")
    parser.add_argument("--keep", type=Path, help="folder of the trained checkpoints; without it none is kept")
    parser.add_argument("--table", action="store_true", help="print the tables of what lies in --out, and run nothing")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}; one core a run is usual")
    if not options.table:
        make_all(options)
    lines = finished(options.out)
    print(analysis.tables(lines))
    if options.out.resolve() != PUBLISHED and PUBLISHED.exists():
        print(compared(lines, finished(PUBLISHED)))


def make_all(options: argparse.Namespace) -> None:
    """Make the runs of the set that are not there."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drop_cut_line(options.out)
    done = {key(line) for line in finished(options.out)}
    missing = [run for run in plan.SETS[options.set] if key(dataclasses.asdict(run)) not in done]
    if not missing:
        return
    make_clips(options.clips / "train", plan.NUM_TRAIN_CLIPS, seed=plan.TRAIN_SEED)
    make_clips(options.clips / "test", plan.NUM_TEST_CLIPS, seed=plan.TEST_SEED)
    if any(run.start == "second" for run in missing) and not (options.second / "figures.json").exists():
        make_second_start(options)
    writing, bar = threading.Lock(), tqdm(total=len(missing), unit="run")

    def make(run: plan.Run) -> None:
        line = made_apart(run, options)
        with writing, options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            bar.update()

    with bar, ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(make, missing))


def made_apart(run: plan.Run, options: argparse.Namespace) -> dict[str, Any]:
    """The line of a run, made by a process of its own on one core."""
    name = "-".join(str(value) for value in dataclasses.asdict(run).values()).replace(" ", "_")
    request = {
        "run": dataclasses.asdict(run),
        "start": None if run.start == "first" else str(options.second),
        "clips": str(options.clips),
        "keep": None if options.keep is None else str(options.keep / name),
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "train_one.py"), json.dumps(request)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise RuntimeError(f"ablation: the run {run} failed: {result.stderr.strip()[-2000:]}")
    return json.loads(result.stdout)


def make_second_start(options: argparse.Namespace) -> None:
    """Make the second start checkpoint, as the package's was made, from another seed."""
    cache = str(options.clips / "tiny")
    command = [sys.executable, "-m", "zoomzero.demo.train_tiny", "--seed", "1", "--clips", cache]
    command += ["--start", str(options.second), "--tight", str(options.second.with_name("second-tight"))]
    subprocess.run(command, check=True)


def finished(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of finished runs, in its order; a last line that was cut short is not one."""
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(text) for text in texts if text.endswith("\n")]


def drop_cut_line(path: Path) -> None:
    """Remove a last line that was cut short, so that the next does not follow it on the same line."""
    whole = path.read_bytes().rpartition(b"\n") if path.exists() else None
    if whole is not None and whole[2]:
        path.write_bytes(whole[0] + whole[1])


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two runs the same."""
    return tuple(run[field.name] for field in dataclasses.fields(plan.Run))


def compared(own: Sequence[dict[str, Any]], published: Sequence[dict[str, Any]]) -> str:
    """Whether these differences lie inside the published intervals, as Markdown."""
    theirs = {
        (item.arm, item.figure): item for item in analysis.differences(analysis.by_arm(published, "clean", "first"))
    }
    rows = []
    for item in analysis.differences(analysis.by_arm(own, "clean", "first")):
        known = theirs.get((item.arm, item.figure))
        if known is not None:
            inside = abs(item.mean - known.mean) <= known.half_width
            rows.append(
                f"- {item.arm}, {item.figure}: {item.mean:+.3f} here, {known.mean:+.3f} ± {known.half_width:.3f} "
                f"published: {'inside' if inside else 'OUTSIDE'}"
            )
    return "\n".join(["### Beside the published runs", *rows]) if rows else ""


if __name__ == "__main__":
    main()
