"""`zoomzero doctor`: what this installation can do, and the remedy for what is missing."""

from __future__ import annotations

import argparse
import json
from typing import Any

TITLES = {
    "machine": "Machine",
    "package": "Packages",
    "kernels": "Kernels",
    "op": "Which back end an op takes",
    "codec": "Video files, tried",
    "model": "Model",
}
MARKS = {"good": " ", "absent": "-", "wrong": "!"}


def add(commands: Any) -> None:
    """Add the command and its options."""
    doctor = commands.add_parser(
        "doctor",
        help="say what this installation can do, and what is missing",
        description="Exit status 1 where questions about videos cannot be answered, or the examined model is wrong.",
    )
    doctor.add_argument(
        "--model",
        metavar="NAME",
        help="also examine a checkpoint (folder or hub name): family, tokens, template, positions, memory, and eight "
        "greedy responses against transformers' own forward",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from zoomzero.installation import WRONG, as_dict, facts

    found, part = [], None
    sources = [facts()] if options.model is None else [facts(), _model_facts(options.model)]
    for fact in (fact for source in sources for fact in source):
        found.append(fact)
        if options.json:
            continue
        if fact.part != part:
            print(f"\n{TITLES[fact.part]}" if part else TITLES[fact.part])
            part = fact.part
        remedy = f"  -> {fact.remedy}" if fact.remedy else ""
        print(f"{MARKS[fact.state]} {fact.name:24}{fact.found}{remedy}", flush=True)
    wrong = [fact.name for fact in found if fact.state == WRONG]
    if options.json:
        print(json.dumps({"works": not wrong, "facts": [as_dict(fact) for fact in found]}, indent=1))
    else:
        print("\n" + (f"Does not work: {', '.join(wrong)}" if wrong else "Works: questions about videos are answered."))
    return 1 if wrong else 0


def _model_facts(path: str) -> Any:
    from zoomzero.cli.doctor_model import check_model
    from zoomzero.installation import GOOD, WRONG, Fact

    for finding in check_model(path):
        yield Fact("model", finding.what, finding.found, GOOD if finding.is_right else WRONG)
