"""zoomzero: video-language models that find the evidence before they answer."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoomzero.answering.answer import Answer, AnswerOptions, Cost, Pass, Query
    from zoomzero.answering.engine import ZoomZero
    from zoomzero.inputs import VideoInputs, load_processor
    from zoomzero.models.shared_prefix import shared_prefix
    from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer

    __version__: str

# Loaded when first used: `import zoomzero.intervals` should not take the seconds that transformers and TRL take.
_HOMES = {
    "Answer": "zoomzero.answering.answer",
    "AnswerOptions": "zoomzero.answering.answer",
    "Cost": "zoomzero.answering.answer",
    "Pass": "zoomzero.answering.answer",
    "Query": "zoomzero.answering.answer",
    "VideoInputs": "zoomzero.inputs",
    "ZoomZero": "zoomzero.answering.engine",
    "ZoomZeroConfig": "zoomzero.training",
    "ZoomZeroTrainer": "zoomzero.training",
    "load_processor": "zoomzero.inputs",
    "shared_prefix": "zoomzero.models.shared_prefix",
}

__all__ = [
    "Answer",
    "AnswerOptions",
    "Cost",
    "Pass",
    "Query",
    "VideoInputs",
    "ZoomZero",
    "ZoomZeroConfig",
    "ZoomZeroTrainer",
    "load_processor",
    "shared_prefix",
]


_MODULES = ("budget", "evaluation", "intervals", "responses", "rewards", "synthetic", "video")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("zoomzero")
    if name in _MODULES:
        return importlib.import_module(f"zoomzero.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'zoomzero' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
