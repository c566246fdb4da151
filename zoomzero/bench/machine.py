"""Where a measurement was made: the machine, its threads and the releases that took part."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("zoomzero", "torch", "torchvision", "transformers", "trl", "liger_kernel", "av", "triton", "numpy")


def processor_name() -> str:
    """The processor's model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line for line in lines if "model name" in line]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def machine() -> dict[str, Any]:
    """Processor, threads of torch, GPU and system, in JSON's types."""
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """The releases of Python and of packages that take part; None for a package that is not there."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
