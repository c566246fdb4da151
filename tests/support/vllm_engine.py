"""vLLM, which tests compare with and which lives in an environment of its own: `make test-rollouts`."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

# Without a process of its own the engine's errors are the test's; threads must not be bound to cores others work on.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
)


def import_vllm() -> ModuleType:
    """The module; without it the importing test file skips, or fails where ZOOMZERO_REQUIRE_ROLLOUTS=1."""
    if os.environ.get("ZOOMZERO_REQUIRE_ROLLOUTS") == "1":
        import vllm

        loaded: ModuleType = vllm
        return loaded
    return pytest.importorskip("vllm", reason="needs vllm; run make test-rollouts", exc_type=ImportError)
