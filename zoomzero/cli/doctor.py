"""`zoomzero doctor`: what this installation can do, and the remedy for what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from typing import Any

# (distribution, what it is for, the extra that brings it)
PACKAGES = (
    ("torch", "everything", None),
    ("triton", "GPU loss kernels", None),
    ("av", "reading video on the CPU", "video"),
    ("nvidia-dali-cuda130", "reading video on the GPU", "video"),
    ("transformers", "models", "train"),
    ("trl", "training", "train"),
    ("pillow", "the report's pictures", "train"),
)


def add(commands: Any) -> None:
    """Add the command and its options."""
    doctor = commands.add_parser("doctor", help="say what this installation can do, and what is missing")
    doctor.add_argument(
        "--model",
        metavar="NAME",
        help="also examine a checkpoint (folder or hub name): family, tokens, template, positions, memory, and eight "
        "greedy responses against transformers' own forward",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    for line in _facts():
        print(line)
    return 0 if options.model is None else _check_model(options.model)


def _check_model(path: str) -> int:
    from zoomzero.cli.doctor_model import check_model

    status = 0
    for finding in check_model(path):
        print(f"model: {finding.what:16}{'' if finding.is_right else 'WRONG: '}{finding.found}", flush=True)
        status = status if finding.is_right else 1
    return status


def _facts() -> Iterator[str]:
    """Lines to print, one per fact."""
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for name, purpose, extra in PACKAGES:
        version = _version(name)
        remedy = f'; pip install "zoomzero[{extra}]"' if extra else ""
        yield f"{name:22}{version or 'missing':12}{purpose}{'' if version else remedy}"
    try:
        from zoomzero_kernels import build_info
    except ImportError as error:
        yield f"zoomzero_kernels      broken      {error}"
        return
    for key, value in build_info().items():
        yield f"kernels: {key:26}{value}"
    import torch

    if torch.cuda.is_available():
        yield f"GPU: {torch.cuda.get_device_name()}, compute capability {torch.cuda.get_device_capability()}"
    else:
        yield "GPU: none; everything runs on the CPU"
    yield f"nvcc: {shutil.which('nvcc') or 'not found; needed only to build the CUDA kernels'}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
