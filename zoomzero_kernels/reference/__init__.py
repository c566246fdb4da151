"""Plain-torch truth of every op: one file an op, no native code, the formula in the docstring.

Tests and benchmarks compare against these; the ops themselves never call them on a path a user takes.
"""

from zoomzero_kernels.reference.frame_resample import frame_resample
from zoomzero_kernels.reference.grpo_loss import grpo_loss, linear_grpo_loss
from zoomzero_kernels.reference.selective_logps import linear_selective_logps, selective_logps
from zoomzero_kernels.reference.shared_prefix_attention import shared_prefix_attention
from zoomzero_kernels.reference.token_advantages import token_advantages
from zoomzero_kernels.reference.token_resample import token_resample

__all__ = [
    "frame_resample",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_selective_logps",
    "selective_logps",
    "shared_prefix_attention",
    "token_advantages",
    "token_resample",
]
