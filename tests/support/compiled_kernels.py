"""The CUDA kernels of csrc as PTX that the interpreter runs on the CPU, found by the names that launches give them."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.host import nvrtc

# (compiler, architecture)
COMPILERS = [("nvcc", "80"), ("nvcc", "90"), ("nvrtc", "90")]


@dataclass(frozen=True)
class CompiledKernels:
    """find: a launch's kernel to the interpreter's module and the name there."""

    find: Callable[[str], tuple[Any, str]]

    def launch(self, launch: _C.KernelLaunch, order: int, extra: Sequence[Tensor]) -> None:
        """Run with the very bytes that a GPU would get; ``extra``: the tensors at which they point."""
        module, name = self.find(launch.kernel)
        shape = (launch.num_blocks, launch.num_threads)
        module.launch(name, *shape, list(launch.parameters), smem=launch.shared_bytes, order=order, extra=list(extra))


def nvcc_ptx(checkout: Path, op: str, architecture: str, folder: Path) -> str:
    """PTX of all kernels of csrc/<op>, as the build compiles them."""
    csrc = checkout / "csrc"
    command = ["nvcc", "-std=c++17", "-ptx", f"-arch=sm_{architecture}", f"-I{csrc}", "-o", folder / "kernel.ptx"]
    subprocess.run([*command, csrc / op / "cuda.cu"], check=True)
    return (folder / "kernel.ptx").read_text()


def of_module(module: Any) -> CompiledKernels:
    """The kernels of one module of the interpreter, compiled by nvcc."""

    def find(kernel: str) -> tuple[Any, str]:
        matched = re.fullmatch(r"zoomzero::(\w+)<zoomzero::ElementType::(\w+)(?:, (true|false))?>", kernel)
        assert matched is not None, kernel
        function, element, flag = matched.groups()
        number = ["kFloat32", "kBFloat16", "kFloat16"].index(element)
        mangled = (
            f"{function}ILNS_11ElementTypeE{number}E" + ("" if flag is None else f"Lb{int(flag == 'true')}E") + "E"
        )
        (name,) = [name for name in module.kernels if mangled in name]
        return module, name

    return CompiledKernels(find)


def by_nvrtc(ptxhost: ModuleType, checkout: Path, op: str, architecture: str) -> CompiledKernels:
    """The kernels as NVRTC compiles them where a build has none; skips where no NVRTC is installed."""
    compiler = nvrtc.find((99, 0))
    if compiler is None:
        pytest.skip("no NVRTC is installed; a CUDA build of torch brings one")
    csrc = checkout / "csrc"

    @functools.cache
    def find(kernel: str) -> tuple[Any, str]:
        code = compiler.compile(csrc / op / "kernel.cuh", csrc, kernel, f"compute_{architecture}")
        return ptxhost.PtxModule(code.image.rstrip(b"\0").decode()), code.name

    return CompiledKernels(find)


def compiled_kernels(
    ptxhost: ModuleType, checkout: Path, op: str, compiler: tuple[str, str], folder: Path
) -> CompiledKernels:
    """The kernels of csrc/<op> by one of COMPILERS."""
    name, architecture = compiler
    if name == "nvrtc":
        return by_nvrtc(ptxhost, checkout, op, architecture)
    return of_module(ptxhost.PtxModule(nvcc_ptx(checkout, op, architecture, folder)))
