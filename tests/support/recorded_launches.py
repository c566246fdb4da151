"""What Triton's own launcher hands to the GPU, against what the embedded launch would: run by test_embedded_kernels.py.

Triton's launcher runs for real, on a driver library that records (recording_driver.c) in place of libcuda.so.1. A
process of its own, since Triton keeps one driver. Prints a line a variant that agreed.

    python recorded_launches.py FOLDER   # FOLDER holds the recording libcuda.so.1, also on LD_LIBRARY_PATH
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import triton
from support.kernel_launches import all_launches
from triton.backends.nvidia.driver import CudaDriver

from zoomzero_kernels import _C
from zoomzero_kernels.triton_kernels.launch import run

ARCHITECTURE = 90


class RecordingDriver(CudaDriver):
    """Triton's driver with what it would ask torch about the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.get_device_capability = lambda device: divmod(ARCHITECTURE, 10)
        self.get_current_stream = lambda device: 0
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None


def main(folder: Path) -> None:
    library = ctypes.CDLL(str(folder / "libcuda.so.1"))
    library.recorded_bytes.restype = ctypes.POINTER(ctypes.c_ubyte)
    library.recorded_launch.restype = ctypes.POINTER(ctypes.c_uint * 7)
    triton.runtime.driver.set_active(RecordingDriver())
    for expected in all_launches():
        launch = expected.launch
        packed = SimpleNamespace()
        packed.blocks, packed.threads, packed.shared_bytes, packed.parameters = _C.packed_embedded_launch(
            launch.variant.name, ARCHITECTURE, launch.num_programs, launch.plain_arguments()
        )
        sizes = [len(parameter) for parameter in packed.parameters]
        library.expect_parameters(len(sizes), (ctypes.c_int * len(sizes))(*sizes))
        run(launch)
        recorded = bytes(library.recorded_bytes()[: sum(sizes)])
        shape = list(library.recorded_launch().contents)
        wanted = [packed.blocks, 1, 1, packed.threads, 1, 1, packed.shared_bytes]
        if recorded != b"".join(packed.parameters) or shape != wanted:
            sys.exit(
                f"{launch.variant.name}: Triton passes {shape} {recorded!r}, embedded {wanted} {packed.parameters}"
            )
        print("agrees", launch.variant.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
