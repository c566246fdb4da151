"""Build the page from the data of a run. All text is escaped: questions, responses and file names are hostile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from zoomzero.annotations import Sample
from zoomzero.answering.answer import Answer, Pass
from zoomzero.files import write_whole
from zoomzero.prompts import OPTION_LETTERS
from zoomzero.report.figures import curve, strip, timeline

# Frames side by side in a strip: one row of a coarse pass of 64 frames is half the clip.
COLUMNS = {"coarse": 32, "zoom": 8}


@dataclasses.dataclass(frozen=True)
class Example:
    """One question answered before and after training; the answers must have been made with keep_frames=True."""

    sample: Sample
    """The question and its truth."""
    before: Answer
    """The start model's answer."""
    after: Answer
    """The trained model's answer."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Contents of the page."""

    title: str
    """Heading."""
    lead: str
    """What the run was, in a few sentences."""
    before: Mapping[str, float]
    """The start model's figures by their shown names."""
    after: Mapping[str, float]
    """The trained model's, by the same names."""
    table_note: str
    """What the figures count."""
    examples_note: str
    """How the examples were chosen."""
    curves: Mapping[str, Sequence[float]]
    """Series by their shown titles, one value per training step."""
    examples: Sequence[Example]
    """Questions to show."""
    facts: Sequence[tuple[str, str]]
    """(name, value) pairs about the run."""


def write_page(report: Report, path: str | Path) -> Path:
    """Write the page, whole or not at all: one HTML file without scripts or outside references. Returns its path."""
    environment = Environment(loader=PackageLoader("zoomzero.report", "."), autoescape=True, undefined=StrictUndefined)
    html = environment.get_template("page.html.j2").render(
        title=report.title,
        lead=report.lead,
        table=[{"name": name, "before": report.before[name], "after": report.after[name]} for name in report.before],
        table_note=report.table_note,
        examples_note=report.examples_note,
        curves=[curve(title, values) for title, values in report.curves.items() if values],
        examples=[_example(example) for example in report.examples],
        facts=report.facts,
    )
    return write_whole(path, html)


def _example(example: Example) -> dict:
    sample = example.sample
    looks = [_look(example.before.passes[0], "whole video", sample)]
    looks += [
        _look(answer.passes[-1], name, sample)
        for answer, name in ((example.before, "zoom before"), (example.after, "zoom after"))
        if len(answer.passes) > 1
    ]
    return {
        "question": sample.question,
        "options": [
            {"letter": letter, "text": text} for letter, text in zip(OPTION_LETTERS, sample.options, strict=False)
        ],
        "answer": sample.answer,
        "video": Path(sample.video).name,
        "timeline": timeline(
            # A benchmark may not say how long its videos are: the last frame seen is close.
            sample.duration or max(example.before.passes[0].plan.timestamps[-1], 1.0),
            [
                ("true span", "true", sample.spans),
                ("before", "before", example.before.spans),
                ("after", "after", example.after.spans),
            ],
        ),
        "looks": looks,
    }


def _look(seen: Pass, name: str, sample: Sample) -> dict:
    if seen.frames is None:
        raise ValueError(
            "write_page: answers shown on the page must be made with keep_frames=True, got none; ask again"
        )
    height, width = seen.plan.size
    return {
        "name": name,
        "kind": seen.name,
        "size": f"{len(seen.plan.timestamps)} frames of {width}x{height}",
        "image": strip(seen.frames, COLUMNS[seen.name]),
        "text": seen.text,
        "is_right": seen.letter == sample.answer,
        "confidence": seen.confidence,
    }
