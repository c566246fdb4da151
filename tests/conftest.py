"""Fixtures shared by all tests."""

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

_CHECKOUT = Path(__file__).parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``cuda`` skip without a GPU, and fail without one where the caller demands a GPU."""
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get("ZOOMZERO_REQUIRE_CUDA") == "1":
        pytest.fail("ZOOMZERO_REQUIRE_CUDA=1, but torch sees no GPU", pytrace=False)
    pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the source checkout."""
    return _CHECKOUT


@pytest.fixture(scope="session")
def ptxhost() -> ModuleType:
    """The PTX interpreter, which runs compiled CUDA kernels on the CPU; skips where it or nvcc is absent."""
    folder = Path(os.environ.get("ZOOMZERO_PTXHOST", _CHECKOUT.parent / "shared" / "tools" / "ptxhost"))
    if not (folder / "ptxhost.py").is_file():
        pytest.skip(f"no PTX interpreter in {folder}; point ZOOMZERO_PTXHOST at its folder")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import ptxhost as module

    return module
