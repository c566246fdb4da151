"""GRPO training of zooming models on TRL: `ZoomZeroTrainer` and its `ZoomZeroConfig`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoomzero.training.config import ZoomZeroConfig
    from zoomzero.training.trainer import ZoomZeroTrainer

__all__ = ["ZoomZeroConfig", "ZoomZeroTrainer"]

# Loaded when first used: the command line reads settings.py and should not wait for TRL.
_HOMES = {"ZoomZeroConfig": "zoomzero.training.config", "ZoomZeroTrainer": "zoomzero.training.trainer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zoomzero.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
