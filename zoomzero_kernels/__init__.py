"""Kernels of Zoom-Zero: video resampling and token-selective GRPO losses for PyTorch.

Every op lives in a module of its own name, registers itself with torch.library under ``zoomzero::`` and has a
plain-torch truth of the same name in ``zoomzero_kernels.reference``. NumPy, CuPy and JAX arrays may stand for tensors.
"""

# build_info comes first: it imports torch, whose libgomp the native module shares, and says so where none was built.
from zoomzero_kernels.build_info import build_info  # isort: skip
from zoomzero_kernels import reference
from zoomzero_kernels.frame_resample import frame_resample
from zoomzero_kernels.grpo_loss import grpo_loss
from zoomzero_kernels.linear_grpo_loss import linear_grpo_loss
from zoomzero_kernels.linear_selective_logps import linear_selective_logps
from zoomzero_kernels.policy.tensors import GRPOLossOutput
from zoomzero_kernels.selective_logps import selective_logps
from zoomzero_kernels.shared_prefix_attention import shared_prefix_attention
from zoomzero_kernels.token_advantages import token_advantages
from zoomzero_kernels.token_resample import token_resample
from zoomzero_kernels.warm_up import warm_up

__all__ = [
    "GRPOLossOutput",
    "build_info",
    "frame_resample",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_selective_logps",
    "reference",
    "selective_logps",
    "shared_prefix_attention",
    "token_advantages",
    "token_resample",
    "warm_up",
]
