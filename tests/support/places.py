"""Folders of the tests, and the published code's numbers."""

import json
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
GOLDEN: dict[str, Any] = json.loads((TESTS / "data" / "zoom_zero_reference.json").read_text(encoding="utf-8"))
