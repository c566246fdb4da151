"""`zoomzero bench`: what ops, reading and answering cost on this machine, beside the rivals that are there."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its options."""
    bench = commands.add_parser(
        "bench",
        help="measure the kernels on this machine, beside the rivals that are installed",
        description="The exit status tells of errors alone, never of times.",
    )
    bench.add_argument("--device", help="cpu or cuda (the GPU, where there is one)")
    bench.add_argument("--quick", action="store_true", help="three rounds, without torch.compile")
    bench.add_argument("--only", nargs="+", default=[], metavar="OP", help="ops whose name holds one of these")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the figures, the machine and the releases too")
    bench.add_argument("--compare", type=Path, metavar="OLD.json", help="show ratios to an earlier run's --json FILE")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from zoomzero.bench.measure import BenchOptions, ceilings, document, failures, measure
    from zoomzero.bench.table import Table, differences, read_old
    from zoomzero.devices import usable_device
    from zoomzero.files import check_writable, write_whole

    # What cannot be is told before minutes of measuring.
    old = read_old(options.compare) if options.compare else None
    if options.json:
        check_writable(options.json)
    device = str(usable_device(options.device))
    chosen = BenchOptions(device, options.quick, tuple(options.only))
    at_best = ceilings(device)
    empty = document(chosen, at_best, [])
    print(_head(empty), flush=True)
    if old is not None:
        for line in differences(old, empty):
            print(f"not the same as in {options.compare}: {line}")
    table = Table(None if old is None else old["rows"])
    rows: list[dict[str, Any]] = []
    for measured in measure(chosen, at_best):
        table.show(measured)
        rows += measured
    if not rows:
        raise ValueError(f"--only: no op's name holds {' or '.join(options.only)}; leave it out to see all")
    if options.json:
        write_whole(options.json, json.dumps(document(chosen, at_best, rows), indent=1) + "\n")
        print(f"\nwritten to {options.json}")
    failed = failures(rows)
    for line in failed:
        print(f"zoomzero bench: {line}", file=sys.stderr)
    return 1 if failed else 0


def _head(document: dict[str, Any]) -> str:
    machine, best = document["machine"], document["ceilings"]
    where = machine["gpu"] if document["device"] != "cpu" else f"{machine['processor']}, {machine['threads']} threads"
    lines = [
        where,
        f"copy {best['copy']:.1f} GB/s, matmul {best['matmul float32']:.3g} TFLOP/s in float32 and "
        f"{best['matmul bfloat16']:.3g} in bfloat16: the ceilings",
    ]
    if document["not_installed"]:
        missing = ", ".join(f"{name} ({how})" for name, how in document["not_installed"].items())
        lines.append(f"not installed, so not beside us: {missing}")
    return "\n".join(lines)
