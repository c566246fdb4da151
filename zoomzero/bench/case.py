"""One thing to measure, where to measure it, and which rivals are there."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
Scale = Literal["tiny", "cpu", "gpu"]

# What is measured beside us where it is installed: a module to look for and how to get it.
RIVALS = {
    "TRL": ("trl", "pip install trl"),
    "Liger": ("liger_kernel", "pip install liger-kernel"),
    "transformers": ("transformers", "pip install transformers"),
    "torchvision": ("torchvision", "pip install torchvision"),
    "PyAV": ("av", "pip install av"),
    "torchcodec": ("torchcodec", "pip install torchcodec"),
}


@dataclass(frozen=True)
class Case:
    """One size of one op.

    candidates: what is timed, "ours" first; each returns what must be equal among them; tolerance: of that, absolute
    and relative; moved_bytes or operations: what must at least be done, for the share of the measured ceiling; dtype:
    of the products counted by operations; bar: the share which is demanded of ours on a GPU; synchronisations: how many
    of them ours may do, None for any number.
    """

    op: str
    size: str
    candidates: Mapping[str, Callable[[], Tensor]]
    moved_bytes: int | None = None
    operations: int | None = None
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-3
    bar: float | None = None
    synchronisations: int | None = None


@dataclass(frozen=True)
class Place:
    """Where and how large: as in training on a GPU, as two cores do it in a second, or tiny, which tries a script.

    with_compile: whether torch.compile takes part, whose compilation takes longer than all the rest on a CPU.
    """

    device: str
    scale: Scale
    with_compile: bool = True

    def pick(self, *, tiny: Value, cpu: Value, gpu: Value) -> Value:
        """The value for this scale."""
        return {"tiny": tiny, "cpu": cpu, "gpu": gpu}[self.scale]

    def compiled(self, function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
        """The candidate torch.compile, if it takes part; at tiny sizes without a code generator."""
        if not self.with_compile:
            return {}
        return {"torch.compile": torch.compile(function, backend="aot_eager" if self.scale == "tiny" else "inductor")}

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers on the device."""
        return torch.randn(*shape, device=self.device, dtype=dtype)


@functools.cache
def rival(module: str) -> Any | None:
    """A rival's module, None where it is not installed or does not load here."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):
        return None


def absent_rivals() -> dict[str, str]:
    """Rivals that are not installed, and how to get each."""
    return {name: how for name, (module, how) in RIVALS.items() if importlib.util.find_spec(module) is None}


def dtype_name(dtype: torch.dtype) -> str:
    """E.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")
