"""The installed NVIDIA driver: which CUDA it runs, and kernels loaded and launched by it, without any CUDA runtime."""

from __future__ import annotations

import ctypes
import functools

from zoomzero_kernels import _C, _built

# The first driver of each major release of CUDA (CUDA Toolkit release notes, minor version compatibility).
FIRST_DRIVERS = {12: "525", 13: "580"}
# CUfunction_attribute CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, and what needs no asking.
_MAX_SHARED_BYTES, _FREELY_SHARED_BYTES = 8, 48 * 1024


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA release that the driver runs, as (major, minor); None without a driver."""
    version = ctypes.c_int()
    try:
        if _library().cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def too_old_for_the_build() -> bool:
    """Whether the machine code and the runtime of this build need a newer driver; minor releases fit each other."""
    found = driver_cuda()
    return found is not None and _built.CUDA_VERSION != "" and found[0] < int(_built.CUDA_VERSION.split(".")[0])


def _check(status: int) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(
            f"zoomzero_kernels: the driver must take the launch of a CUDA kernel, got {(text.value or b'?').decode()}; "
            "an earlier kernel may have failed, which CUDA_LAUNCH_BLOCKING=1 shows"
        )


class LoadedKernel:
    """A kernel of an image (cubin or PTX) on one device, in the context that torch uses too."""

    def __init__(self, image: bytes, name: str, device: int) -> None:
        """Load it.

        Raises:
            RuntimeError: the driver does not take the image.
        """
        self._context, module, self._function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        library = _library()
        _check(library.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device))
        _check(library.cuCtxPushCurrent_v2(self._context))
        try:
            _check(library.cuModuleLoadData(ctypes.byref(module), image))
            _check(library.cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()))
        finally:
            library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def launch(self, launch: _C.KernelLaunch, stream: int) -> None:
        """Launch it on a stream of its device; does not wait.

        Raises:
            RuntimeError: the driver does not take the launch.
        """
        library = _library()
        held = [ctypes.create_string_buffer(value, len(value)) for value in launch.parameters]
        parameters = (ctypes.c_void_p * len(held))(*map(ctypes.addressof, held))
        _check(library.cuCtxPushCurrent_v2(self._context))
        try:
            if launch.shared_bytes > _FREELY_SHARED_BYTES:
                _check(library.cuFuncSetAttribute(self._function, _MAX_SHARED_BYTES, launch.shared_bytes))
            grid, block = (launch.num_blocks, 1, 1), (launch.num_threads, 1, 1)
            place = (launch.shared_bytes, ctypes.c_void_p(stream), parameters, None)
            _check(library.cuLaunchKernel(self._function, *grid, *block, *place))
        finally:
            library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
