"""`zoomzero report`: the summary of a demo's run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its options."""
    report = commands.add_parser("report", help="print the summary of a demo's run and where its page is")
    report.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"), help="folder of the run (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    file = options.run / "summary.json"
    if not file.exists():
        raise ValueError(f"{file}: no summary there; run `zoomzero demo` first, or name the folder of a run")
    print(file.read_text(encoding="utf-8"))
    return 0
