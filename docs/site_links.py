"""A hook of the site's build: pages that are parts of files in the checkout's root, whose links it turns."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# `<!-- include FILE -->`, or `<!-- include FILE: "first heading" to "heading after it" -->`.
INCLUDE = re.compile(r'<!-- include (?P<file>\S+?)(?:: "(?P<first>.+)" to "(?P<end>.+)")? -->')
MOVED = {
    "](docs/": "](",
    "](CONTRIBUTING.md": "](contributing.md",
    "](../CONTRIBUTING.md": "](contributing.md",
    "](CHANGELOG.md": "](changelog.md",
}


# A script that a page links to stands at its end.
SCRIPT = re.compile(r"\]\(\.\./(?P<path>examples/(?P<name>\w+)\.py)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with what it includes, every link to where the site has its target."""
    text = INCLUDE.sub(_included, markdown)
    scripts = [
        f"\n## {found['name']}\n\n```python\n{(ROOT / found['path']).read_text(encoding='utf-8')}```\n"
        for found in SCRIPT.finditer(text)
    ]
    text = SCRIPT.sub(r"](#\g<name>)", text) + "".join(scripts)
    for old, new in MOVED.items():
        text = text.replace(old, new)
    return text


def _included(match: re.Match[str]) -> str:
    text = (ROOT / match["file"]).read_text(encoding="utf-8")
    if match["first"] is None:
        return text
    start = text.index(f"\n{match['first']}\n")
    return text[start : text.index(f"\n{match['end']}\n", start)]
