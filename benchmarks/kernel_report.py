"""Registers, spills, shared memory and theoretical occupancy of every GPU kernel, from the compilers' own output.

Compiles every CUDA and Triton kernel for each architecture; no GPU takes part. Fails where a kernel spills.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from harness import print_table, write_results

from zoomzero_kernels import _C
from zoomzero_kernels.frame_resample import native_params
from zoomzero_kernels.triton_kernels.variants import compile_variant, variants

CHECKOUT = Path(__file__).parent.parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (80, 90, 100)
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": bytes of shared memory a processor has.
SHARED_BYTES_PER_PROCESSOR = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
# The same on all three: warps and blocks a processor holds, its registers, and the driver's own shared bytes a block.
WARPS, BLOCKS, REGISTERS, RESERVED_BYTES = 64, 32, 65536, 1024
# Threads a block of the CUDA kernels, by source file (kThreads there).
CUDA_THREADS = {"frame_resample": 256, "token_resample": 128}


def occupancy(arch: int, threads: int, registers: int, shared_bytes: int) -> float:
    """Share of a processor's warps that can be resident; registers go to warps in units of 256."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = SHARED_BYTES_PER_PROCESSOR[arch] // (shared_bytes + RESERVED_BYTES)
    return min(WARPS // warps, BLOCKS, by_registers, by_shared) * warps / WARPS


def resource_usage(cubin: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """(mangled name, {"REG", "STACK", "SHARED", "LOCAL"}) of every kernel in a compiled file."""
    tool = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(cubin)]
    text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    for name, usage in re.findall(r"Function (\S+):\s*\n\s*(.*)", text):
        yield name, {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}


def readable(mangled: str) -> str:
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=False)
    name = done.stdout.strip() if done.returncode == 0 else mangled
    return re.sub(r"^void |zoomzero::|\(anonymous namespace\)::|\((?!anonymous).*\)$", "", name)


def frame_resample_shared_bytes() -> int:
    """Dynamic shared memory of a launch for 32 frames of 720p to 1176x672."""
    frames = torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(32, 720, 1280, 3)
    out = torch.empty(0)
    params = native_params(frames, None, out, (672, 1176), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (14, 2, 2), 1)
    _, _, (_, _, shared_bytes) = _C.frame_resample_launch(params, 132)
    return shared_bytes


def row(kernel: str, arch: int, threads: int, usage: dict[str, int], dynamic_shared: int) -> dict[str, Any]:
    # From sm_90 on the compiler's figure holds the driver's reserved bytes too, wherever a kernel uses shared memory.
    own_shared = max(0, usage["SHARED"] - RESERVED_BYTES) if arch >= 90 else usage["SHARED"]
    shared_bytes = own_shared + dynamic_shared
    return {
        "kernel": kernel,
        "arch": f"sm_{arch}",
        "threads": threads,
        "registers": usage["REG"],
        "spill_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": shared_bytes,
        "occupancy": round(occupancy(arch, threads, usage["REG"], shared_bytes), 3),
    }


def cuda_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for source in sorted((CHECKOUT / "csrc").glob("*/cuda.cu")):
        op = source.parent.name
        dynamic_shared = frame_resample_shared_bytes() if op == "frame_resample" else 0
        for arch in ARCHITECTURES:
            cubin = folder / f"{op}_{arch}.cubin"
            command = ["nvcc", "-std=c++17", "-cubin", f"-arch=sm_{arch}", f"-I{CHECKOUT / 'csrc'}"]
            subprocess.run([*command, "-o", str(cubin), str(source)], check=True)
            for name, usage in resource_usage(cubin):
                yield row(f"cuda {readable(name)}", arch, CUDA_THREADS[op], usage, dynamic_shared)


def triton_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for variant in variants():
        for arch in ARCHITECTURES:
            compiled = compile_variant(variant, arch)
            cubin = folder / f"{variant.name}_{arch}.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            ((_, usage),) = resource_usage(cubin)
            yield row(f"triton {variant.name}", arch, 32 * compiled.metadata.num_warps, usage, compiled.metadata.shared)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = [*cuda_rows(Path(scratch)), *triton_rows(Path(scratch))]
    print_table(rows)
    print(f"written to {write_results('kernel_report', rows)}")
    spilling = [f"{line['kernel']} {line['arch']}" for line in rows if line["spill_bytes"] > 0]
    if spilling:
        sys.exit(f"kernel report: no kernel may spill, got {spilling}; lower its registers or its tile")


if __name__ == "__main__":
    main()
