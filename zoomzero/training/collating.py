"""The collator of a training's data loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zoomzero.looks.rows import Row, RowEncoder


class ReadAheadCollator:
    """Rows as they are, after their videos were handed to the background threads.

    In a process of the loader it hands on the rows alone: there is no model to overlap with, and no way back for what
    was read. So it goes there without its encoder.
    """

    def __init__(self, encoder: RowEncoder) -> None:
        self._encoder: RowEncoder | None = encoder

    def __call__(self, rows: Sequence[Row]) -> Any:
        """The rows of a batch."""
        if self._encoder is not None and torch.utils.data.get_worker_info() is None:
            self._encoder.read_ahead(rows)
        return rows

    def __getstate__(self) -> Mapping[str, Any]:
        return {"_encoder": None}
