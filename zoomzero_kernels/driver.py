"""Whether the installed NVIDIA driver runs what was built: the driver is asked, no CUDA runtime takes part."""

from __future__ import annotations

import ctypes
import functools

from zoomzero_kernels import _built


@functools.cache
def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA release that the driver runs, as (major, minor); None without a driver."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def too_old_for_the_build() -> bool:
    """Whether the machine code and the runtime of this build need a newer driver; minor releases fit each other."""
    found = driver_cuda()
    return found is not None and _built.CUDA_VERSION != "" and found[0] < int(_built.CUDA_VERSION.split(".")[0])
