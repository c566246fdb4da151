"""The machine code of the kernels: instructions per element and bytes of rows in flight keep to their budgets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

# Of an H100's 50 MB of L2, what rows that are read twice may take.
MOST_ROW_BYTES = 42_000_000


@pytest.fixture
def report(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH")
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    import kernel_report

    return kernel_report


def test_cuda_kernels_keep_to_their_budgets(report: Any, tmp_path: Path) -> None:
    rows = list(report.cuda_rows(tmp_path, (90,)))
    counted = [row for row in rows if row["budget"] is not None]
    assert len(counted) == 9  # two parts of frame_resample and token_resample by vectors, in three types
    assert not report.over_budget(rows)
    assert not [row for row in rows if row["spill_bytes"] > 0]


@pytest.mark.parametrize("logits", ["fp32", "bf16", "fp16"])
def test_row_kernels_keep_to_their_budgets(report: Any, tmp_path: Path, logits: str) -> None:
    from zoomzero_kernels.triton_kernels.variants import row_variant

    for kernel in report.ROW_PASSES:
        (row,) = report.triton_row(row_variant(kernel, logits, aligned=True), 90, tmp_path)
        assert row["instructions_per_element"] > 1, "no loop over logits was found"
        assert not report.over_budget([row])
        if kernel == "policy_rows_kernel" and logits != "fp32":
            assert row["rows_in_flight_bytes"] <= MOST_ROW_BYTES


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("logits", ["fp32", "bf16", "fp16"])
def test_one_program_of_the_policy_kernel_fills_a_processor(
    report: Any, tmp_path: Path, arch: int, logits: str
) -> None:
    from zoomzero_kernels.triton_kernels.variants import ROW_OPTIONS, row_variant

    for aligned in (True, False):
        (row,) = report.triton_row(row_variant("policy_rows_kernel", logits, aligned=aligned), arch, tmp_path)
        assert row["occupancy"] * report.WARPS == ROW_OPTIONS["num_warps"]


def test_what_is_over_budget_is_named(report: Any) -> None:
    row = {"kernel": "k", "part": "all", "arch": "sm_90", "instructions_per_element": 61.0, "budget": 60.0}
    assert report.over_budget([row]) == ["k, all: 61.0 > 60.0"]
    assert not report.over_budget([row | {"arch": "sm_80"}, row | {"kernel": "k.any"}, row | {"budget": None}])


# A loop inside a loop, as cuobjdump prints them; the inner one has two ways back.
LISTING = """
\tFunction : kernel
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   @!P0 FFMA R4, R4, R5, R6 ;
        /*0030*/                   @P1 BRA 0x20 ;
        /*0040*/                   IADD3 R2, R2, 0x10, RZ ;
        /*0050*/                   @P0 BRA 0x20 ;
        /*0060*/                   @P2 BRA 0x10 ;
        /*0070*/                   EXIT ;
"""


def test_loops_are_read_from_the_disassembly(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import machine_code

    tool = tmp_path / "cuobjdump"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    tool.chmod(0o755)
    monkeypatch.setattr(machine_code, "TOOLS", tmp_path)
    ((name, loops),) = machine_code.loops_of(tmp_path / "kernel.cubin")
    assert name == "kernel"
    outer, inner = loops
    assert (outer.size, inner.size) == (6, 4)
    assert inner.parent is outer
    assert machine_code.innermost(loops, uses="FFMA") == [inner]
    assert inner.opcodes[0] == "FFMA"
    assert machine_code.innermost(loops, uses="LDG") == []
