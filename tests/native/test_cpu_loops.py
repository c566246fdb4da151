"""The CPU loops without Python: built from the same CMakeLists.txt, natively and for another architecture."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

AARCH64 = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"


def build(checkout: Path, folder: Path, *options: str) -> Path:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake on PATH")
    configure = [
        cmake,
        "-S",
        str(checkout),
        "-B",
        str(folder),
        "-DCMAKE_BUILD_TYPE=Release",
        "-DZOOMZERO_NATIVE_TESTS=ON",
    ]
    for command in ([*configure, *options], [cmake, "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "cpu_loops"


def outcome(command: list[str], **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def native_program(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs a C++ compiler")
    return build(checkout, tmp_path_factory.mktemp("native"))


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_loops_of_every_instruction_set(native_program: Path, capability: str) -> None:
    order = ["DEFAULT", "AVX2", "AVX512"]
    known = torch.backends.cpu.get_cpu_capability()
    if capability != "DEFAULT" and (known not in order or order.index(known) < order.index(capability)):
        pytest.skip(f"this processor has no {capability}")
    printed = outcome([str(native_program)], ZOOMZERO_CPU_CAPABILITY=capability)
    assert printed.startswith(f"{capability}, ")
    assert " 0 failures" in printed


@pytest.mark.slow
def test_loops_without_openmp(checkout: Path, tmp_path: Path) -> None:
    program = build(checkout, tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    assert ", one thread: " in outcome([str(program)])


@pytest.mark.slow
def test_loops_on_aarch64(checkout: Path, tmp_path: Path) -> None:
    for tool in (AARCH64, EMULATOR):
        if shutil.which(tool) is None:
            # CI installs both, see .ci/system_packages.sh.
            if os.environ.get("ZOOMZERO_REQUIRE_CROSS") == "1":
                pytest.fail(f"ZOOMZERO_REQUIRE_CROSS=1, but {tool} is not on PATH", pytrace=False)
            pytest.skip(f"needs {tool} on PATH")
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={AARCH64}"]
    program = build(checkout, tmp_path, *system)
    assert outcome([EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(program)]).startswith("DEFAULT, ")
