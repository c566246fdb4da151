"""How the CUDA kernels reach a GPU: built by nvcc or compiled by NVRTC, and what is said where neither can be.

What NVRTC compiles is run against the CPU in the tests of the ops; here its launch is recorded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.places import SUPPORT, TESTS
from support.recorded_cuda import frame_launch, token_launch
from support.recorded_driver import build_recording_driver

from zoomzero_kernels import _C, build_info
from zoomzero_kernels.host import cuda_kernels, driver, nvrtc
from zoomzero_kernels.host.checks import require_cuda_build


def run_on_recorder(folder: Path, program: list[str], driver_version: int) -> subprocess.CompletedProcess[str]:
    """Run a program whose driver is the recording one, with a folder of kept kernels of its own."""
    build_recording_driver(folder)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "RECORDED_DRIVER": str(driver_version),
        "XDG_CACHE_HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, *program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


_NO_WAY = """
import torch
from zoomzero_kernels import build_info
from zoomzero_kernels.host import nvrtc
from zoomzero_kernels.host.checks import require_cuda_build
nvrtc.find = lambda newest: None
print(build_info()["driver_cuda"], build_info()["cuda_kernels"])
require_cuda_build("frame_resample", torch.device("cuda:0"))
"""


@pytest.mark.skipif(not _C.WITH_CUDA, reason="this build has no CUDA kernels")
def test_a_driver_older_than_the_build_is_told_in_one_sentence(tmp_path: Path) -> None:
    done = run_on_recorder(tmp_path, ["-c", _NO_WAY], 12080)
    assert done.stdout.split() == ["12.8", "None"], done.stderr
    told = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"RuntimeError: frame_resample: kernels built with CUDA 13\.\S+ need driver 580 or newer \(CUDA 13\.0\), got a "
        r"driver for CUDA 12\.8; update the driver, or `pip install nvidia-cuda-nvrtc-cu12` and they are compiled for "
        r"this one",
        told,
    ), told


def test_a_build_without_kernels_asks_for_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "WITH_CUDA", False)
    monkeypatch.setattr(driver, "driver_cuda", lambda: (13, 1))
    monkeypatch.setattr(nvrtc, "find", lambda newest: None)
    cuda_kernels.way.cache_clear()
    try:
        require_cuda_build("op", torch.device("cpu"))
        with pytest.raises(RuntimeError, match=r"op: this build .* no CUDA kernels .* found none for a driver of CUDA "
                           r"13.1; `pip install nvidia-cuda-nvrtc`"):  # fmt: skip
            require_cuda_build("op", torch.device("cuda:0"))
    finally:
        cuda_kernels.way.cache_clear()


def test_a_gpu_older_than_the_machine_code_is_refused_and_newer_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "way", lambda: "built")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(
        ValueError, match=r"op: a GPU must have compute capability 8.0 or newer, got 7.5 on cuda:0; move"
    ):
        require_cuda_build("op", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    require_cuda_build("op", torch.device("cuda:0"))


@pytest.mark.skipif(not _C.WITH_CUDA, reason="this build has no CUDA kernels")
def test_gpus_newer_than_the_machine_code_find_ptx() -> None:
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton")
        tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    command = [tool, "--list-ptx", _C.__file__]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    newest = max(build_info()["cuda_archs"], key=int)
    assert set(re.findall(r"\.sm_(\d+\w*)\.ptx", listed)) == {newest}  # and no "100a", which would serve 10.0 alone


@pytest.mark.parametrize("major", [12, 13])
def test_nvrtc_serves_a_build_without_kernels(tmp_path: Path, checkout: Path, major: int) -> None:
    """The road of a machine whose build has no kernels, or newer ones than its driver, but for the GPU itself."""
    compiler = nvrtc.find((major, 0))
    if compiler is None or compiler.version[0] != major:
        pytest.skip(f"no NVRTC of CUDA {major} is installed; torch builds for it bring one")
    program = [str(SUPPORT / "recorded_cuda.py"), str(checkout / "csrc")]
    done = run_on_recorder(tmp_path, program, 1000 * major + 80)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["nvrtc", *map(str, compiler.version), "kept"]


@pytest.mark.skipif(not _C.WITH_CUDA, reason="this build has no CUDA kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_launch_names_a_kernel_of_the_build(dtype: torch.dtype) -> None:
    names = {launch.kernel for launch in (frame_launch(dtype), token_launch(8, dtype), token_launch(5, dtype))}
    assert len(names) == 3
    assert names <= set(_C.CUDA_KERNELS)
