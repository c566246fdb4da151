"""One HTML file of a report: template, style and scripts inlined, the data beside them as JSON that nothing executes.

Note [Inert text]
Questions, responses and names come from outside. They stand in the page as JSON in script blocks of a type that no
browser runs, with `<` escaped so that no block can end early; the scripts put them into the page as text nodes only. A
content security policy allows the page's own style and script by their hashes, images from data addresses, and
nothing else: not even a string that became markup could run or load something.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from zoomzero.files import write_whole
from zoomzero.report.data import Report
from zoomzero.text import escaped

# In the order in which each uses what those before it define.
SCRIPTS = ("dom", "charts", "summary", "filters", "questions", "question", "training", "main")


def write_report(report: Report, path: str | Path) -> Path:
    """Write the page, whole or not at all; returns its path.

    Raises:
        OSError: it cannot be written.
    """
    return write_whole(path, page(report))


def page(report: Report) -> str:
    """The page as text."""
    folder = files("zoomzero.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    parts = [folder.joinpath("script", f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {
        "policy": policy,
        "title": html.escape(escaped(str(report.data["title"]))),
        "style": style,
        "data": "".join(_blocks(report)),
        "script": script,
    }
    # One pass over the template's own text: what is filled in is never looked through.
    pieces = folder.joinpath("page.html").read_text(encoding="utf-8").split("{{")
    return pieces[0] + "".join(filled[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def _blocks(report: Report) -> Iterator[str]:
    yield _block("data", report.data)
    for place, sheet in enumerate(report.sheets):
        yield _block(f"sheet-{place}", sheet)


def _block(name: str, value: Any) -> str:
    # Outside of strings JSON has no "<"; inside, the escape reads back as it was.
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
