"""Compiled CUDA kernels whose asynchronous copies land as late as they may: when their thread waits for them.

The interpreter itself copies at once, so that a use ahead of its wait would go unseen there.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

_PRELUDE = """#include "ptxrt.h"
#include <map>
#include <vector>
struct LateCopy { u8* to; const u8* from; u32 num_bytes; };
static thread_local std::map<const void*, std::vector<LateCopy>> late_copies;
static void land(const void* thread) {
  for (const LateCopy& copy : late_copies[thread]) memcpy(copy.to, copy.from, copy.num_bytes);
  late_copies[thread].clear();
}
"""


def late_copy_module(ptxhost: ModuleType, ptx: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the interpreter for PTX with ``cp.async`` copies that nothing but ``cp.async.wait_all`` completes."""
    translate = ptxhost.translate

    def copy_or_wait(generator: Any, operands: list[str]) -> None:
        kind = generator.mods[:2]
        if kind == ["async", "wait_all"]:
            generator.emit("land(t);")
        elif kind[1] in ("ca", "cg") and len(operands) == 3:
            num_bytes = int(operands[2], 0)
            to, source = (
                generator.addr(operand, space, num_bytes)
                for operand, space in zip(operands, ("shared", "global"), strict=False)
            )
            generator.emit(f"late_copies[t].push_back({{{to}, {source}, {num_bytes}u}});")
        else:
            generator.err(generator.op)

    def translated(text: str) -> Any:
        source, *rest = translate(text)
        return (source.replace('#include "ptxrt.h"\n', _PRELUDE, 1), *rest)

    with monkeypatch.context() as patched:
        patched.setattr(ptxhost.Gen, "i_cp", copy_or_wait)
        patched.setattr(ptxhost, "translate", translated)
        return ptxhost.PtxModule(ptx)
