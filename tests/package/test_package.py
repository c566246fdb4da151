"""The package as installed: what it was built with, what it demands, how it fails."""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from zoomzero_kernels import build_info
from zoomzero_kernels.build_info import check_torch


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_build_info_describes_this_installation() -> None:
    info = build_info()
    assert info["torch_running"] == torch.__version__
    assert info["version"].count(".") == 2
    assert info["cpu_capability"] in {"AVX512", "AVX2", "DEFAULT"}
    assert info["backends"]["cpu"] is True
    assert info["backends"]["cuda"] is (torch.cuda.is_available() and info["cuda_built"] is not None)
    assert (info["cuda_built"] is None) == (info["cuda_archs"] == [])


def test_another_torch_release_is_refused() -> None:
    with pytest.raises(ImportError, match=r"built against torch .*, but torch 9\.9\.1 is running.*pip install"):
        check_torch("9.9.1", torch.version.cuda)


@pytest.mark.skipif(build_info()["cuda_built"] is None, reason="a CPU-only build depends on no CUDA release")
@pytest.mark.parametrize("running", ["99.0", None])
def test_another_cuda_release_is_refused(running: str | None) -> None:
    with pytest.raises(
        ImportError, match=rf"for CUDA {torch.version.cuda}, but the running torch is for CUDA {running}"
    ):
        check_torch(torch.__version__, running)


def test_import_fails_with_another_torch() -> None:
    done = run_python("import torch; torch.__version__ = '9.9.1'; import zoomzero_kernels")
    assert done.returncode != 0
    assert "ImportError: zoomzero_kernels: built against torch" in done.stderr


def test_import_from_bare_sources_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout / "zoomzero_kernels", tmp_path / "zoomzero_kernels", ignore=shutil.ignore_patterns("*.so"))
    done = run_python(
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith('ScikitBuild')]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import zoomzero_kernels\n"
    )
    assert done.returncode != 0
    assert "the native module must be built" in done.stderr
    assert "make setup" in done.stderr


def test_kernels_need_only_torch_and_numpy() -> None:
    done = run_python(
        "import sys, zoomzero_kernels\n"
        "loaded = {'transformers', 'trl', 'av', 'nvidia.dali', 'torchvision', 'zoomzero'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    assert done.returncode == 0, done.stderr


def load_backend(checkout: Path) -> ModuleType:
    path = checkout / "build_backend" / "zoomzero_build.py"
    spec = importlib.util.spec_from_file_location("zoomzero_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_is_a_build_requirement_only_where_there_is_none(checkout: Path, monkeypatch: Any) -> None:
    pyproject = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    assert not [name for name in pyproject["build-system"]["requires"] if name.startswith("torch")]
    backend = load_backend(checkout)
    assert backend._torch_requirement() == []
    monkeypatch.setattr(backend, "torch_facts", lambda: None)
    (requirement,) = backend._torch_requirement()
    assert requirement in pyproject["project"]["dependencies"]


def test_build_refuses_a_broken_torch(checkout: Path, monkeypatch: Any) -> None:
    backend = load_backend(checkout)
    monkeypatch.setattr(backend, "_FACTS_PROGRAM", "raise ImportError('libtorch is damaged')")
    with pytest.raises(RuntimeError, match=r"(?s)torch must be importable, got .*is damaged.*; repair"):
        backend.torch_facts()
