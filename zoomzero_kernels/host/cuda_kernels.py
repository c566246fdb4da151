"""Launching the CUDA kernels of csrc, which reach the GPU in one of two ways.

- "built": nvcc compiled them into ``zoomzero_kernels._C``.
- "nvrtc": where this build has none (no nvcc when it was built), or the driver is older than the CUDA of the build,
  NVRTC compiles their packaged sources at the first launch, with the release of CUDA that is there: every CUDA build
  of torch brings one. The machine code is kept in ``$XDG_CACHE_HOME/zoomzero``.

The launch, by name and bytes, comes from the same C++ function either way.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path

import torch

from zoomzero_kernels import _C, _built
from zoomzero_kernels.host import driver, native, nvrtc

SOURCES = Path(_C.__file__).parent / "csrc"


@functools.cache
def way() -> str | None:
    """How the CUDA kernels reach the GPU: "built", "nvrtc" or, where neither is possible, None."""
    if _C.WITH_CUDA and not driver.too_old_for_the_build():
        return "built"
    return None if nvrtc.find(driver.driver_cuda()) is None else "nvrtc"


def what_is_missing() -> str:
    """A sentence for where no way is possible: what was found, what is needed, the remedy."""
    found = driver.driver_cuda() or (0, 0)
    remedy = f"`pip install nvidia-cuda-nvrtc-cu{found[0]}`" if found[0] == 12 else "`pip install nvidia-cuda-nvrtc`"
    if not _C.WITH_CUDA:
        return (
            "this build of zoomzero has no CUDA kernels and must be given NVRTC to compile them, found none for a "
            f"driver of CUDA {found[0]}.{found[1]}; {remedy}"
        )
    major = int(_built.CUDA_VERSION.split(".")[0])
    return (
        f"kernels built with CUDA {_built.CUDA_VERSION} need driver {driver.FIRST_DRIVERS.get(major, '580')} or newer "
        f"(CUDA {major}.0), got a driver for CUDA {found[0]}.{found[1]}; update the driver, or {remedy} and they are "
        "compiled for this one"
    )


def run(op: str, launch: _C.KernelLaunch, device: torch.device) -> None:
    """Launch a kernel of csrc/<op> on a CUDA device, on torch's current stream; does not wait for it."""
    if launch.num_blocks == 0:
        return
    with torch.cuda.device(device):
        stream = native.stream(device)
        if way() == "built":
            _C.launch_cuda_kernel(launch, device.index, stream)
        else:
            capability = torch.cuda.get_device_capability(device)
            loaded(op, launch.kernel, capability, device.index).launch(launch, stream)


@functools.cache
def loaded(op: str, kernel: str, capability: tuple[int, int], device: int) -> driver.LoadedKernel:
    """A kernel compiled by NVRTC, on a device of this compute capability."""
    code = compiled(op, kernel, capability)
    return driver.LoadedKernel(code.image, code.name, device)


def compiled(op: str, kernel: str, capability: tuple[int, int], sources: Path = SOURCES) -> nvrtc.MachineCode:
    """A kernel of csrc/<op> compiled by NVRTC for a compute capability, from the folder of kept ones if it is there.

    Raises:
        RuntimeError: no NVRTC whose code the driver runs is installed, or the sources do not compile.
    """
    compiler = nvrtc.find(driver.driver_cuda())
    if compiler is None:
        raise RuntimeError(f"{op}: {what_is_missing()}")
    known = [
        architecture for architecture in compiler.architectures() if architecture <= 10 * capability[0] + capability[1]
    ]
    exact = 10 * capability[0] + capability[1] in known
    # A GPU newer than NVRTC gets PTX of the newest that it knows, which the driver compiles.
    architecture = f"sm_{known[-1]}" if exact else f"compute_{known[-1]}"
    said = f"{compiler.version} {architecture} {op} {kernel}".encode()
    kept = _kept_folder() / hashlib.sha256(said + b"\0" + nvrtc.text_of_sources(sources)).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        name, image = kept.read_bytes().split(b"\n", 1)
        return nvrtc.MachineCode(name.decode(), image)
    code = compiler.compile(sources / op / "kernel.cuh", sources, kernel, architecture)
    _keep(kept, code)
    return code


def _kept_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoomzero" / "cuda_kernels"


def _keep(path: Path, code: nvrtc.MachineCode) -> None:
    """Write the file whole or not at all; where the folder cannot be written, the next process compiles again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code.name.encode() + b"\n" + code.image)
        os.replace(file.name, path)
