"""Kernels of Zoom-Zero: video resampling and token-selective GRPO losses for PyTorch.

Every op lives in a module of its own name, registers itself with torch.library under ``zoomzero::`` and has a plain-torch
truth of the same name in ``zoomzero_kernels.reference``.
"""

# build_info comes first: it checks that the running torch fits the native module before anything loads that module.
from zoomzero_kernels.build_info import build_info  # isort: skip
from zoomzero_kernels.frame_resample import frame_resample

__all__ = ["build_info", "frame_resample"]
