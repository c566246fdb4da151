"""Where published annotation files lie, which are no part of the repository."""

import os
from pathlib import Path

import pytest
from support.places import TESTS


def published(benchmark: str) -> Path:
    """Folder of a benchmark's published files; skips the test where they are absent."""
    root = os.environ.get("ZOOMZERO_PUBLISHED", TESTS.parent.parent / "shared" / "data" / "published")
    folder = Path(root, benchmark)
    if not folder.is_dir():
        pytest.skip(f"no published files in {folder}; point ZOOMZERO_PUBLISHED at the folder that holds them")
    return folder
