"""`zoomzero report`: a run, or two side by side, as one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

MEGABYTE = 1_000_000
# Of a page: what opens at once, and what a mail takes.
MAX_MEGABYTES = 30.0


def add(commands: Any) -> None:
    """Add the command and its options."""
    report = commands.add_parser("report", help="one page about an evaluation, a training or a demo, or two compared")
    report.add_argument("run", type=Path, nargs="+", help="folder of a run; two are put side by side")
    report.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the page (report.html in the first run's folder)"
    )
    report.add_argument("--title", help="heading; the runs' names unless told")
    report.add_argument(
        "--max-megabytes", type=float, default=MAX_MEGABYTES, help="size at which thumbnails end (%(default)s)"
    )
    report.add_argument("--no-thumbnails", action="store_true", help="do not read the videos again for their frames")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if not options.max_megabytes > 0:
        raise ValueError(f"--max-megabytes must be above 0, got {options.max_megabytes}; {MAX_MEGABYTES:g} is usual")
    from tqdm import tqdm

    from zoomzero.files import check_writable
    from zoomzero.report import read_report, write_report

    out = options.out or options.run[0] / "report.html"
    if options.run[0].is_dir() or options.out:
        check_writable(out)
    max_bytes = 0 if options.no_thumbnails else int(options.max_megabytes * MEGABYTE)
    # No bar before there is something to read: an error is one line.
    bars: list[tqdm] = []

    def advance(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(desc="reading frames", unit="video", total=total))
        bars[0].update(done - bars[0].n)

    try:
        report = read_report(options.run, title=options.title, max_bytes=max_bytes, on_progress=advance)
    finally:
        for bar in bars:
            bar.close()
    write_report(report, out)
    note = report.data["thumbnails"]["note"]
    if note:
        print(f"thumbnails: {note}", file=sys.stderr)
    print(f"{out}  ({out.stat().st_size / MEGABYTE:.1f} MB)")
    return 0
