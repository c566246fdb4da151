"""GRPO training of zooming models on TRL: `ZoomZeroTrainer` and its `ZoomZeroConfig`."""

from zoomzero.trainer.config import ZoomZeroConfig
from zoomzero.trainer.trainer import ZoomZeroTrainer

__all__ = ["ZoomZeroConfig", "ZoomZeroTrainer"]
