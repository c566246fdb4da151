"""`zoomzero bench`: the microbenchmarks of a source checkout."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its options."""
    bench = commands.add_parser("bench", help="run the microbenchmarks of a source checkout")
    bench.add_argument(
        "--folder", type=Path, default=Path("benchmarks"), help="the checkout's benchmarks (%(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    scripts = sorted(options.folder.glob("bench_*.py"))
    if not scripts:
        raise ValueError(f"{options.folder}: no benchmarks there; run this in a checkout of the repository")
    # The safe path leaves out a script's own folder too, where the benchmarks share code.
    environment = {**os.environ, "PYTHONPATH": str(options.folder.absolute())}
    return max(
        subprocess.run([sys.executable, str(script)], check=False, env=environment).returncode for script in scripts
    )
