"""PEP 517 backend: scikit-build-core, plus the answer to "which torch is this built against?".

Naming torch in build-system.requires would make pip install a second torch of several gigabytes into its build
environment even where the target environment has one, and the native module would then be built against the wrong
copy. So the requirement is dynamic: torch is asked for only when the target environment has none that satisfies the
project.

Run as a script (CMake does), this file prints the facts of that torch as one JSON object.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scikit_build_core import build as skbuild
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# -I hides the PYTHONPATH and site hook by which pip's build isolation covers the target environment.
_ISOLATED = ["-I"]

_FACTS_PROGRAM = """
import importlib.metadata, json, sys
try:
    import torch
    from torch.utils.cpp_extension import include_paths
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit(3)
try:
    triton = importlib.metadata.version("triton")
except importlib.metadata.PackageNotFoundError:
    triton = ""
print("ZOOMZERO_TORCH=" + json.dumps({
    "triton": triton,
    "version": torch.__version__,
    "cuda": torch.version.cuda or "",
    "cxx11_abi": int(torch.compiled_with_cxx11_abi()),
    "include": include_paths(),
    "lib": torch.__path__[0] + "/lib",
}))
"""


def _facts_of(flags: list[str]) -> dict[str, Any] | None:
    """Facts of the torch that ``python <flags>`` imports, or None where there is none."""
    with tempfile.TemporaryDirectory() as neutral:  # so that no torch folder of the current directory is imported
        done = subprocess.run(
            [sys.executable, *flags, "-c", _FACTS_PROGRAM], cwd=neutral, capture_output=True, text=True, check=False
        )
    if done.returncode == 3:
        return None
    found = re.search(r"^ZOOMZERO_TORCH=(.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"zoomzero build: torch must be importable, got {done.stderr[-2000:]}; repair it first")
    return {**json.loads(found.group(1)), "python_flags": flags}


def _minimum_torch() -> tuple[int, int]:
    """The lower bound that pyproject.toml sets on torch."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"torch>=(\d+)\.(\d+)"', text)
    if found is None:
        raise RuntimeError('zoomzero build: pyproject.toml must name "torch>=MAJOR.MINOR", found none; restore it')
    return int(found.group(1)), int(found.group(2))


def torch_facts() -> dict[str, Any] | None:
    """Facts of the torch to build against: the target environment's if new enough, else the build environment's."""
    minimum = _minimum_torch()
    for flags in (_ISOLATED, []):
        facts = _facts_of(flags)
        if facts is not None and tuple(int(part) for part in facts["version"].split(".")[:2]) >= minimum:
            return facts
    return None


def _torch_requirement() -> list[str]:
    major, minor = _minimum_torch()
    return [] if torch_facts() is not None else [f"torch>={major}.{minor}"]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*skbuild.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*skbuild.get_requires_for_build_editable(config_settings), *_torch_requirement()]


if __name__ == "__main__":
    torch_found = torch_facts()
    if torch_found is None:
        major, minor = _minimum_torch()
        sys.exit(
            f"zoomzero build: torch >= {major}.{minor} must be importable, found none; run `pip install torch` first, "
            "or leave out --no-build-isolation so that pip fetches it"
        )
    print(json.dumps(torch_found))
