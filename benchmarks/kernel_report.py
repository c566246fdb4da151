"""Registers, spills, shared memory, occupancy and instructions per element of every GPU kernel.

From the compilers' output and the disassembly: compiles every CUDA and Triton kernel for each architecture; no GPU
takes part. Fails where a kernel spills or takes more instructions per element than its budget.
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
from harness import print_table, write_results
from instruction_counts import (
    BUDGETS,
    ROW_PASSES,
    Count,
    frame_resample_counts,
    row_counts,
    token_resample_counts,
)
from machine_code import TOOLS, Loop, loops_of

from zoomzero_kernels import _C
from zoomzero_kernels.frame_resample import native_params
from zoomzero_kernels.triton_kernels.variants import ROW_BLOCK, Variant, compile_variant, variants

CHECKOUT = Path(__file__).parent.parent
ARCHITECTURES = (80, 90, 100)
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": bytes of shared memory a processor has.
SHARED_BYTES_PER_PROCESSOR = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
# The same on all three: warps and blocks a processor holds, its registers, and the driver's own shared bytes a block.
WARPS, BLOCKS, REGISTERS, RESERVED_BYTES = 64, 32, 65536, 1024
# Threads a block of the CUDA kernels: of frame_resample in strips of 56 columns, of token_resample for D = 3584 in
# 16-bit types.
CUDA_THREADS = {"frame_resample": 224, "token_resample": 448}
PROCESSORS = 132  # of an H100
# The vocabulary of Qwen2.5-VL, for the bytes of rows that are in flight together.
VOCABULARY = 151936
LOGIT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


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
    for value, element_type in enumerate(("float32", "bfloat16", "float16")):
        name = name.replace(f"(zoomzero::ElementType){value}", element_type)
    name = name.replace("(bool)1", "vectors").replace("(bool)0", "elements")
    return re.sub(r"^void |zoomzero::|\(anonymous namespace\)::|\((?!anonymous).*\)$", "", name)


def frame_resample_shared_bytes() -> int:
    """Dynamic shared memory of a launch for 32 frames of 720p to 1176x672."""
    frames = torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(32, 720, 1280, 3)
    out = torch.empty(0)
    params = native_params(frames, None, out, (672, 1176), (0.0, 0.0, 0.0, 1.0, 1.0, 1.0), (14, 2, 2), 1)
    return _C.frame_resample_launch(params, 132).shared_bytes


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
        "rows_in_flight_bytes": None,
        "part": None,
        "element": None,
        "instructions_per_element": None,
        "issue_budget_at_3_TB_per_second": None,
        "budget": None,
    }


def with_counts(line: dict[str, Any], kernel: str, counts: list[Count]) -> Iterator[dict[str, Any]]:
    """The row once for every counted part of the kernel, or as it is."""
    for count in counts:
        yield line | {
            "part": count.part,
            "element": count.element,
            "instructions_per_element": round(count.instructions, 1),
            "issue_budget_at_3_TB_per_second": count.issue_budget and round(count.issue_budget, 1),
            "budget": BUDGETS.get((kernel, count.part, count.element_bytes)),
        }
    if not counts:
        yield line


def cuda_counts(op: str, mangled: str, loops: list[Loop]) -> list[Count]:
    """Kernels that take an element at a time are for unaligned memory, and not counted."""
    element_bytes = 4 if "ElementTypeE0E" in mangled else 2
    if op == "frame_resample":
        return frame_resample_counts(loops, element_bytes)
    return [] if "Lb0E" in mangled else token_resample_counts(loops, element_bytes)


def cuda_rows(folder: Path, architectures: tuple[int, ...] = ARCHITECTURES) -> Iterator[dict[str, Any]]:
    for source in sorted((CHECKOUT / "csrc").glob("*/cuda.cu")):
        op = source.parent.name
        dynamic_shared = frame_resample_shared_bytes() if op == "frame_resample" else 0
        for arch in architectures:
            cubin = folder / f"{op}_{arch}.cubin"
            command = ["nvcc", "-std=c++17", "-cubin", f"-arch=sm_{arch}", f"-I{CHECKOUT / 'csrc'}"]
            subprocess.run([*command, "-o", str(cubin), str(source)], check=True)
            loops = dict(loops_of(cubin))
            for name, usage in resource_usage(cubin):
                line = row(f"cuda {readable(name)}", arch, CUDA_THREADS[op], usage, dynamic_shared)
                yield from with_counts(line, op, cuda_counts(op, name, loops[name]))


def triton_row(variant: Variant, arch: int, folder: Path) -> Iterator[dict[str, Any]]:
    compiled = compile_variant(variant, arch)
    cubin = folder / f"{variant.name}_{arch}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    ((_, usage),) = resource_usage(cubin)
    threads = 32 * compiled.metadata.num_warps
    line = row(f"triton {variant.name}", arch, threads, usage, compiled.metadata.shared)
    if variant.logits is None:
        yield line
        return
    element_bytes = LOGIT_BYTES[variant.logits]
    programs = line["occupancy"] * WARPS / (threads // 32)
    line["rows_in_flight_bytes"] = int(programs * PROCESSORS * VOCABULARY * element_bytes)
    ((_, loops),) = loops_of(cubin)
    passes = ROW_PASSES[variant.kernel]
    yield from with_counts(
        line, variant.kernel, [row_counts(loops, element_bytes, ROW_BLOCK // threads, passes=passes)]
    )


def triton_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for variant in variants():
        for arch in ARCHITECTURES:
            yield from triton_row(variant, arch, folder)


def over_budget(rows: list[dict[str, Any]]) -> list[str]:
    """Kernels for sm_90 that take more instructions per element than they may; unaligned variants may take more."""
    return [
        f"{line['kernel']}, {line['part']}: {line['instructions_per_element']} > {line['budget']}"
        for line in rows
        if line["arch"] == "sm_90"
        and not line["kernel"].endswith(".any")
        and line["budget"] is not None
        and line["instructions_per_element"] > line["budget"]
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = [*cuda_rows(Path(scratch)), *triton_rows(Path(scratch))]
    print_table(rows)
    print(f"written to {write_results('kernel_report', rows)}")
    spilling = [f"{line['kernel']} {line['arch']}" for line in rows if line["spill_bytes"] > 0]
    if spilling:
        sys.exit(f"kernel report: no kernel may spill, got {spilling}; lower its registers or its tile")
    if over_budget(rows):
        sys.exit(f"kernel report: instructions per element must keep to BUDGETS, got {over_budget(rows)}")


if __name__ == "__main__":
    main()
