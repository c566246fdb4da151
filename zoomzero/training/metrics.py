"""Figures of a batch while it is made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Metrics(dict[str, float]):
    """Figures by name, each set once per batch."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Keep the seconds of the block as seconds/<name>; on a GPU, of what the block waited for."""
        start = time.perf_counter()
        yield
        self[f"seconds/{name}"] = time.perf_counter() - start
