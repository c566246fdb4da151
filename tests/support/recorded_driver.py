"""A driver library that records launches, where there is no GPU; see recording_driver.c."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.places import SUPPORT


def build_recording_driver(folder: Path) -> None:
    """Put a libcuda.so.1 into the folder that answers and records, and runs CUDA 12.8."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc, as Triton's launcher does")
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1"]
    library, source = folder / "libcuda.so.1", SUPPORT / "recording_driver.c"
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
