"""GRPO training of zooming models on TRL: `ZoomZeroTrainer` and its `ZoomZeroConfig`."""

from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.trainer import ZoomZeroTrainer

__all__ = ["ZoomZeroConfig", "ZoomZeroTrainer"]
