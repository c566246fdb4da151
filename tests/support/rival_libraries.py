"""Import of the libraries that tests compare with and that the project does not depend on: verl and Liger."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def import_rival(name: str) -> ModuleType:
    """The module of that name; without it the importing test file skips, or fails where ZOOMZERO_REQUIRE_RIVALS=1."""
    if os.environ.get("ZOOMZERO_REQUIRE_RIVALS") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"needs {name}; run make test-rivals", exc_type=ImportError)
