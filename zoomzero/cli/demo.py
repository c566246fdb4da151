"""`zoomzero demo`: answer, train to zoom and answer again, on real files made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command and its options."""
    demo = commands.add_parser("demo", help="answer, train to zoom, answer again, on real files made here")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (%(default)s)")
    demo.add_argument("--clips", type=Path, default=Path(".cache/demo"), help="folder of the clips (%(default)s)")
    demo.add_argument("--steps", type=int, default=80, help="training steps (%(default)s)")
    demo.add_argument("--test-questions", type=int, default=300, help="held-out questions (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from zoomzero.demo import DemoOptions, run_demo

    run_demo(DemoOptions(out=options.out, clips=options.clips, steps=options.steps, num_test=options.test_questions))
    return 0
