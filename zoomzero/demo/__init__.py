"""The main job on real files, end to end: answer, train by GRPO to zoom, answer again, and show what changed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoomzero.demo.options import DemoOptions

if TYPE_CHECKING:
    from zoomzero.demo.run import check_outcome, run_demo

__all__ = ["DemoOptions", "check_outcome", "run_demo"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the command line reads the options and should not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module 'zoomzero.demo' has no attribute {name!r}")
    return getattr(importlib.import_module("zoomzero.demo.run"), name)
