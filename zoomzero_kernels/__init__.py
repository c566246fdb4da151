"""Kernels of Zoom-Zero: video resampling and token-selective GRPO losses for PyTorch.

Every op lives in a module of its own name, registers itself with torch.library under ``zoomzero::`` and has a plain-torch
truth of the same name in ``zoomzero_kernels.reference``.
"""

__all__: list[str] = []
