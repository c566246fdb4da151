"""Launching the kernels written in Triton, in one of two ways.

- "jit": Triton compiles a kernel at its first launch. Any GPU that Triton knows; needs Triton at run time.
- "embedded": the machine code that the build left in ``zoomzero_kernels._C``, launched from C++ as a plain CUDA kernel.
  For the architectures of the build; every other GPU falls back to "jit".

The environment variable ZOOMZERO_TRITON_KERNELS chooses. "jit" is the default, because no GPU has run "embedded" yet;
where Triton is not installed, "embedded" is used without asking.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.host import driver, native
from zoomzero_kernels.triton_kernels.variants import Variant, jit_function

OPTION = "ZOOMZERO_TRITON_KERNELS"
CHOICES = ("jit", "embedded")

Arguments = tuple[Tensor | int | float, ...]


@dataclass(frozen=True)
class Launch:
    """One launch: what both ways need.

    num_programs: size of the one-dimensional grid; arguments: run-time arguments in the order of the kernel's
    parameters, tensors contiguous or with strides among the arguments.
    """

    variant: Variant
    num_programs: int
    arguments: Arguments

    def plain_arguments(self) -> tuple[int | float, ...]:
        """The arguments with addresses in place of tensors, as the embedded kernels take them."""
        return tuple(value.data_ptr() if isinstance(value, Tensor) else value for value in self.arguments)


def option() -> str:
    """What ZOOMZERO_TRITON_KERNELS asks for.

    Raises:
        ValueError: it holds neither "jit" nor "embedded".
    """
    wanted = os.environ.get(OPTION, CHOICES[0])
    if wanted not in CHOICES:
        raise ValueError(f"{OPTION} must be one of {', '.join(CHOICES)}, got {wanted!r}; correct or unset it")
    return wanted


def embedded_architectures() -> tuple[int, ...]:
    """Compute capabilities, times ten, of the embedded machine code; empty where none is embedded."""
    return tuple(sorted({architecture for _, architecture in _C.EMBEDDED_KERNELS}))


def embedded_architecture(capability: tuple[int, int]) -> int | None:
    """The embedded machine code that a GPU of this compute capability runs, or None.

    Code for 8.0 and its like runs on later minor versions too. From 9.0 on Triton compiles for one version alone. A
    driver older than the build runs none of it.
    """
    if driver.too_old_for_the_build():
        return None
    major, minor = capability
    if major >= 9:
        exact = 10 * major + minor
        return exact if exact in embedded_architectures() else None
    usable = [arch for arch in embedded_architectures() if 10 * major <= arch <= 10 * major + minor]
    return max(usable, default=None)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _possible_way(capability: tuple[int, int]) -> str | None:
    embedded = embedded_architecture(capability) is not None
    if embedded and (option() == "embedded" or not _has_triton()):
        return "embedded"
    return "jit" if _has_triton() else None


def way(capability: tuple[int, int]) -> str:
    """How kernels are launched on a GPU of this compute capability: "jit" or "embedded".

    Raises:
        RuntimeError: neither way is possible.
    """
    possible = _possible_way(capability)
    if possible is None:
        usable = [] if driver.too_old_for_the_build() else list(embedded_architectures())
        raise RuntimeError(
            f"zoomzero_kernels: a GPU of compute capability {capability[0]}.{capability[1]} needs Triton, which is not "
            f"installed, or kernels embedded for it that the driver runs, got them for {usable}; `pip install triton`"
        )
    return possible


def table() -> dict[str, str]:
    """How kernels are launched, by architecture: the embedded ones and "other"; "none" where no way is possible."""
    ways = {f"sm_{arch}": _possible_way(divmod(arch, 10)) or "none" for arch in embedded_architectures()}
    return {**ways, "other": "jit" if _has_triton() else "none"}


def run(launch: Launch) -> None:
    """Launch on the device of the first argument, on torch's current stream; does not wait for it.

    Tensors on the CPU reach Triton too, whose interpreter (TRITON_INTERPRET=1) takes them.
    """
    if launch.num_programs == 0:
        return
    variant = launch.variant
    device = next(argument.device for argument in launch.arguments if isinstance(argument, Tensor))
    if device.type != "cuda":
        jit_function(variant)[(launch.num_programs,)](*launch.arguments, **variant.constants, **variant.options)
        return
    capability = torch.cuda.get_device_capability(device)
    architecture = embedded_architecture(capability)
    # Both ways launch on the current device, whatever device the arguments are on.
    with torch.cuda.device(device):
        if way(capability) == "embedded" and architecture is not None:
            place = (device.index, native.stream(device))
            _C.launch_embedded_kernel(variant.name, architecture, launch.num_programs, launch.plain_arguments(), *place)
        else:
            jit_function(variant)[(launch.num_programs,)](*launch.arguments, **variant.constants, **variant.options)
