"""The command line: zoomzero answer | train | eval | demo | report | serve | bench | doctor, one file per command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import zoomzero
from zoomzero.child_processes import safe_children

# Every command file has add(commands), its options, and run(options) -> exit status. Heavy imports (torch,
# transformers, TRL) happen inside run, so that --help answers at once.
from zoomzero.cli import answer, bench, demo, doctor, eval, report, serve, train

COMMANDS = {
    "demo": demo,
    "answer": answer,
    "train": train,
    "eval": eval,
    "report": report,
    "serve": serve,
    "doctor": doctor,
    "bench": bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error of the input, 2 for wrong usage, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    # The bars shown are our own; transformers' bar over the weights would stand between answers.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from zoomzero.video import VideoError

    try:
        with safe_children():
            return COMMANDS[options.command].run(options)
    except (VideoError, ValueError, TypeError, OSError, ImportError) as error:
        print(f"zoomzero {options.command}: {_said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"zoomzero {options.command}: stopped", file=sys.stderr)
        return 130


def _said(error: Exception) -> str:
    """The error's words; of the system's errors the file and what is wrong with it, without the number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoomzero", description="Video-language models that find the evidence before they answer."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {zoomzero.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add(commands)
    return parser
