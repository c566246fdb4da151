"""What this installation was built with and what it runs on."""

import importlib.util
from typing import Any

import torch

try:
    from zoomzero_kernels import _built
except ImportError as error:
    raise ImportError(
        "zoomzero_kernels: the native module must be built before the package is imported, found only the source "
        "folder; "
        "run `make setup`, or `pip install .`, in the checkout"
    ) from error


def build_info() -> dict[str, Any]:
    """Versions and capabilities of the installed kernels.

    Returns:
        ``version`` (of zoomzero), ``torch_running``, ``cuda_built`` (CUDA release of the kernels, None for a build
        without them), ``driver_cuda`` (newest CUDA release that the driver runs, None without a driver),
        ``cuda_archs`` (list of compute capabilities such as "90"), ``cuda_kernels`` ("built": by nvcc, "nvrtc":
        compiled at their first launch by the NVRTC that is there, None: neither way is possible here),
        ``cpu_capability`` ("AVX512", "AVX2" or "DEFAULT"; what the CPU kernels chose on this processor), ``openmp``
        (False: the CPU kernels run on one thread), ``backends``: which of "cpu", "cuda" (kernels and a GPU present)
        and "triton" (importable and a GPU present) are live, ``embedded_triton`` (release that compiled the embedded
        Triton kernels, None without them) and ``triton_kernels``: how the kernels written in Triton are launched by
        architecture, "jit" or "embedded" (the environment variable ZOOMZERO_TRITON_KERNELS chooses).
    """
    from zoomzero_kernels import _C
    from zoomzero_kernels.attention import flash
    from zoomzero_kernels.host import cuda_kernels
    from zoomzero_kernels.host.driver import driver_cuda
    from zoomzero_kernels.triton_kernels import launch

    gpu = torch.cuda.is_available()
    driver = driver_cuda()
    return {
        "version": _built.VERSION,
        "torch_running": torch.__version__,
        "cuda_built": _built.CUDA_VERSION if _C.WITH_CUDA else None,
        "driver_cuda": driver and ".".join(map(str, driver)),
        "cuda_archs": [arch for arch in _built.CUDA_ARCHS.split(";") if arch],
        "cuda_kernels": cuda_kernels.way(),
        "cpu_capability": _C.cpu_capability(),
        "openmp": _C.OPENMP,
        "backends": {
            "cpu": True,
            "cuda": cuda_kernels.way() is not None and gpu,
            "triton": gpu and importlib.util.find_spec("triton") is not None,
        },
        "embedded_triton": _built.EMBEDDED_TRITON or None,
        "triton_kernels": launch.table(),
        "shared_prefix_attention": flash.live_kernels(),
    }
