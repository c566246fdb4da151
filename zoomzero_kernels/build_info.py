"""What this installation was built with, what it runs on, and the check that both fit together."""

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

_REMEDY = "rebuild zoomzero for this torch: `pip install --force-reinstall --no-deps --no-cache-dir .` in its sources"


def _major_minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def check_torch(running_version: str, running_cuda: str | None) -> None:
    """Raise ImportError where the running torch is not the one that the native module was compiled against.

    torch keeps no stable C++ interface between minor releases, nor between CUDA majors: loading such a module ends in
    an undefined symbol at best and in wrong memory accesses at worst.

    Args:
        running_version: ``torch.__version__``.
        running_cuda: ``torch.version.cuda``, None for a CPU build of torch.
    """
    if _major_minor(running_version) != _major_minor(_built.TORCH_VERSION):
        raise ImportError(
            f"zoomzero_kernels: built against torch {_built.TORCH_VERSION}, but torch {running_version} is running, "
            f"and torch's C++ interface changes with every minor release; {_REMEDY}"
        )
    if _built.CUDA_ARCHS and (running_cuda or "").split(".")[0] != _built.TORCH_CUDA.split(".")[0]:
        raise ImportError(
            f"zoomzero_kernels: built against a torch for CUDA {_built.TORCH_CUDA}, but the running torch is for "
            f"CUDA {running_cuda}; {_REMEDY}"
        )


check_torch(torch.__version__, torch.version.cuda)


def build_info() -> dict[str, Any]:
    """Versions and capabilities of the installed kernels.

    Returns:
        ``version`` (of zoomzero), ``torch_built`` and ``torch_running``, ``cuda_built`` (CUDA version of the torch
        built against, None for a CPU-only build of the kernels), ``cuda_archs`` (list of compute capabilities such as
        "90"), ``cpu_capability`` ("AVX512", "AVX2" or "DEFAULT"; what the CPU kernels chose on this processor),
        ``backends``: which of "cpu", "cuda" (kernels built and a GPU present) and "triton" (importable and a GPU
        present) are live, ``embedded_triton`` (release that compiled the embedded Triton kernels, None without them)
        ``triton_kernels``: how the kernels written in Triton are launched by architecture, "jit" or "embedded"
        (the environment variable ZOOMZERO_TRITON_KERNELS chooses), and ``shared_prefix_attention``: by device type,
        "flash" where torch's own flash kernels compute it, "eager" where this torch's do not fit.
    """
    from zoomzero_kernels import _C
    from zoomzero_kernels.attention import flash
    from zoomzero_kernels.triton_kernels import launch

    gpu = torch.cuda.is_available()
    return {
        "version": _built.VERSION,
        "torch_built": _built.TORCH_VERSION,
        "torch_running": torch.__version__,
        "cuda_built": _built.TORCH_CUDA if _C.WITH_CUDA else None,
        "cuda_archs": [arch for arch in _built.CUDA_ARCHS.split(";") if arch],
        "cpu_capability": _C.cpu_capability(),
        "backends": {
            "cpu": True,
            "cuda": _C.WITH_CUDA and gpu,
            "triton": gpu and importlib.util.find_spec("triton") is not None,
        },
        "embedded_triton": _built.EMBEDDED_TRITON or None,
        "triton_kernels": launch.table(),
        "shared_prefix_attention": flash.live_kernels(),
    }
