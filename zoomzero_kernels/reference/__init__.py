"""Plain-torch truth of every op: one file an op, no native code, the formula in the docstring.

Tests and benchmarks compare against these; the ops themselves never call them on a path a user takes.
"""

from zoomzero_kernels.reference.frame_resample import frame_resample

__all__ = ["frame_resample"]
