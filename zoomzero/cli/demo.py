"""`zoomzero demo`: answer, train to zoom and answer again, on real files made on the spot."""

from __future__ import annotations

import argparse
from typing import Any

from zoomzero.cli.fields import add_fields, field_values
from zoomzero.demo.options import DemoOptions

FLAGS = {"num_prompts": "--prompts", "num_rollouts": "--rollouts", "num_test": "--test-questions"}


def add(commands: Any) -> None:
    """Add the command and its options."""
    demo = commands.add_parser("demo", help="answer, train to zoom, answer again, on real files made here")
    add_fields(demo, DemoOptions, FLAGS)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from zoomzero.demo.run import run_demo

    run_demo(DemoOptions(**field_values(options, DemoOptions)))
    return 0
