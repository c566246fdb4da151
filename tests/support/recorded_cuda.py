"""What our own launch of kernels compiled by NVRTC hands to the GPU: run by test_cuda_kernels.py.

A process of its own. NVRTC, the folder of kept kernels and the launch are real; the driver is the recording one.

    python recorded_cuda.py CSRC   # CSRC: the folder of the sources; the recording libcuda.so.1 on LD_LIBRARY_PATH
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from zoomzero_kernels import _C
from zoomzero_kernels.frame_resample import native_params as frame_params
from zoomzero_kernels.host import cuda_kernels, driver, nvrtc
from zoomzero_kernels.token_resample import _slice_table, device_tables
from zoomzero_kernels.token_resample import native_params as token_params


def token_launch(width: int, dtype: torch.dtype) -> _C.KernelLaunch:
    """The launch that pools one slice of 2 x 3 tokens to 1 x 2."""
    sides = torch.tensor([[2, 3]]), torch.tensor([[1, 2]])
    table = _slice_table(*sides)
    tables = device_tables(table, torch.device("cpu"))
    tokens, pooled = torch.zeros(6, width, dtype=dtype), torch.empty(2, width, dtype=dtype)
    return _C.token_resample_launch(token_params(tokens, pooled, table, tables, backward=False))


def frame_launch(dtype: torch.dtype) -> _C.KernelLaunch:
    """The launch that makes four patches of two small frames."""
    frames, patches = torch.zeros(2, 40, 60, 3, dtype=torch.uint8), torch.empty(4, 1176, dtype=dtype)
    params = frame_params(frames, None, patches, (28, 28), (0.5,) * 6, (14, 2, 2), 1)
    return _C.frame_resample_launch(params, 132)


def check_launch(launch: _C.KernelLaunch, code: nvrtc.MachineCode) -> None:
    """Launch, and compare what the driver was handed."""
    library = ctypes.CDLL("libcuda.so.1")
    library.recorded_bytes.restype = ctypes.POINTER(ctypes.c_ubyte)
    library.recorded_launch.restype = ctypes.POINTER(ctypes.c_uint * 7)
    library.recorded_image.restype = library.recorded_name.restype = ctypes.c_char_p
    sizes = [len(value) for value in launch.parameters]
    library.expect_parameters(len(sizes), (ctypes.c_int * len(sizes))(*sizes))
    driver.LoadedKernel(code.image, code.name, 0).launch(launch, 0)
    assert bytes(library.recorded_bytes()[: sum(sizes)]) == b"".join(launch.parameters)
    shape = [launch.num_blocks, 1, 1, launch.num_threads, 1, 1, launch.shared_bytes]
    assert list(library.recorded_launch().contents) == shape
    assert library.recorded_name().decode() == code.name
    assert library.recorded_image()[:4] == code.image[:4]


def main(sources: Path) -> None:
    _C.WITH_CUDA = False  # as a build without nvcc has it
    launches = {"frame_resample": frame_launch(torch.float32), "token_resample": token_launch(8, torch.float32)}
    compiler = nvrtc.find(driver.driver_cuda())
    assert compiler is not None
    print(cuda_kernels.way(), *compiler.version)
    for op, launch in launches.items():
        code = cuda_kernels.compiled(op, launch.kernel, (9, 0), sources)
        assert code.image.startswith(b"\x7fELF")
        check_launch(launch, code)
        # A GPU that this NVRTC does not know gets PTX of the newest that it does.
        code = cuda_kernels.compiled(op, launch.kernel, (99, 0), sources)
        assert f".target sm_{max(compiler.architectures())}".encode() in code.image
        check_launch(launch, code)
    nvrtc.Compiler.compile = None  # type: ignore[assignment,method-assign]  # what was compiled is kept
    for op, launch in launches.items():
        check_launch(launch, cuda_kernels.compiled(op, launch.kernel, (9, 0), sources))
    print("kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
