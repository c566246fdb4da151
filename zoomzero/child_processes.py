"""Python processes that we start import nothing from the folder they are started in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def safe_children() -> Iterator[None]:
    """Python processes that are started meanwhile, by whatever library, leave the current folder off their path.

    A file `struct.py` or `torch.py` lying there would be executed, by the processes of a data loader for example.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAFE_PATH, None)
        else:
            os.environ[SAFE_PATH] = before
