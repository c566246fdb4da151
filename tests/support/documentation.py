"""The Python on the documentation's pages, for the tests that run it."""

from __future__ import annotations

import re

from support.places import TESTS


def python_blocks(page: str) -> list[str]:
    """Source of all Python blocks of docs/``page``, in order."""
    text = (TESTS.parent / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    if not blocks:
        raise ValueError(f"docs/{page} must hold Python blocks, got none; see the tests that run them")
    return blocks


def python_block(page: str, phrase: str) -> str:
    """The one block that holds ``phrase``."""
    found = [block for block in python_blocks(page) if phrase in block]
    if len(found) != 1:
        raise ValueError(f"one block of docs/{page} must hold {phrase!r}, got {len(found)}; mend the test or the page")
    return found[0]
