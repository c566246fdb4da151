"""The Triton kernels three ways without a GPU: interpreted, their PTX executed, and compiled to machine code."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.grpo_cases import make_case
from support.places import SUPPORT, TESTS

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget

from zoomzero_kernels import grpo_loss, token_advantages
from zoomzero_kernels.policy import rows
from zoomzero_kernels.policy.objectives import PolicyOptions, row_options
from zoomzero_kernels.policy.options import checked_options
from zoomzero_kernels.policy.tensors import LogpOutputs, LogpSlopes, LogpStatistics, PolicyTensors, RowOutputs
from zoomzero_kernels.triton_kernels.policy_rows import (
    logp_rows_backward_kernel,
    logp_rows_kernel,
    policy_rows_kernel,
    scale_rows_kernel,
)
from zoomzero_kernels.triton_kernels.token_advantages import token_advantages_kernel
from zoomzero_kernels.triton_kernels.variants import compile_variant, variants


@pytest.mark.slow
def test_interpreted() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUPPORT / "interpreted_kernels.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    assert re.search(r"[1-9]\d* passed", result.stdout) or "[100%]" in result.stdout


@pytest.fixture(scope="module")
def run_ptx(ptxhost: ModuleType) -> Any:
    """Runs a kernel through Triton's NVIDIA back end and the PTX interpreter."""
    import trihost

    return trihost.run


# Thread orders: ascending, descending, shuffled; a missing barrier shows as a difference between them.
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Several blocks of few warps, aligned and not, and one block of the size that a large vocabulary gets.
@pytest.mark.parametrize(("vocab", "aligned", "block"), [(101, False, 64), (272, True, 128), (8200, False, 8192)])
def test_policy_rows_ptx(
    run_ptx: Any, capability: int, dtype: torch.dtype, vocab: int, aligned: bool, block: int
) -> None:
    case = make_case(2, 3, vocab)
    case.mask[1, 2] = False
    logits = case.logits.to(dtype)
    weights = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    # One loss type for each capability: the branches are those of every row.
    loss_type = {80: "dapo", 90: "dppo_kl", 120: "sapo"}[capability]
    given = checked_options("grpo_loss", {"loss_type": loss_type, "temperature": 0.7, "beta": 0.1, "kl_clamp": 5.0})
    options = row_options(given)
    tensors = PolicyTensors(
        case.token_ids, case.mask, case.advantages, weights, case.old_logps, case.ref_logps, weights + 0.1, weights / 9
    )
    expected_grad = torch.empty_like(logits)
    expected = rows.policy_rows(logits, tensors, options, expected_grad)
    inputs = (case.token_ids, case.mask.view(torch.uint8), *tensors[2:])
    numbers = (1 / 0.7, *options[1:])
    together = 16 // logits.element_size() if aligned else 1
    for order in (0, 1, 2):
        for target in (torch.full_like(logits, math.nan), logits.clone()):
            outputs = RowOutputs.zeros((2, 3), logits)
            source = target if not target.isnan().any() else logits
            run_ptx(
                policy_rows_kernel, (6,), source, *inputs, *outputs, target,
                *source.stride()[:2], *target.stride()[:2], 3, vocab, *numbers, 1, 1, 1, 1, 1,
                ALIGNED=aligned, BLOCK=block, TOGETHER=together, num_warps=max(1, block // 256), cc=capability,
                order=order,
            )  # fmt: skip
            for got, want in zip(outputs, expected, strict=True):
                torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
            tolerance = 2e-5 if dtype == torch.float32 else 1.6e-2
            torch.testing.assert_close(target, expected_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_logp_rows_ptx(run_ptx: Any, capability: int) -> None:
    case = make_case(2, 3, 101)
    logits = case.logits.bfloat16()
    mask = case.mask.view(torch.uint8)
    expected = rows.logp_rows(logits, case.token_ids, case.mask, 0.7)
    results = LogpOutputs.zeros((2, 3), logits)
    strides = logits.stride()[:2]
    options = {"ALIGNED": False, "BLOCK": 128, "TOGETHER": 1, "num_warps": 4, "cc": capability}
    run_ptx(
        logp_rows_kernel, (6,), logits, case.token_ids, mask, *results, *strides, 3, 101, 1 / 0.7,
        **options,
    )  # fmt: skip
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    slopes = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    want_grad = torch.empty_like(logits)
    saved, wanted = LogpStatistics(*results[1:]), LogpSlopes(slopes[0].contiguous(), slopes[1].contiguous())
    rows.logp_rows_backward(logits, case.token_ids, case.mask, saved, wanted, 0.7, want_grad)
    for order in (0, 1, 2):
        grad = torch.full_like(logits, math.nan)
        run_ptx(
            logp_rows_backward_kernel, (6,), logits, case.token_ids, mask, *saved, *wanted, grad,
             *strides, *strides, 3, 101, 1 / 0.7, 1,
            **options, order=order,
        )  # fmt: skip
        torch.testing.assert_close(grad, want_grad, rtol=1.6e-2, atol=1.6e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_rows_ptx(run_ptx: Any, ptxhost: ModuleType, dtype: torch.dtype) -> None:
    wide = torch.randn(3, 4, 120, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad, expected = wide[:, 1:3, 5:106], wide.clone()
    expected[:, 1:3, 5:106] *= 0.3

    def scale(rows: torch.Tensor, by: float) -> None:
        # Six rows for four programs, two turns a row.
        run_ptx(
            scale_rows_kernel, (4,), rows, torch.tensor(by), *grad.stride()[:2], 6, 2, 101,
            ALIGNED=False, BLOCK=64, TOGETHER=1, num_warps=2, cc=90,
        )  # fmt: skip

    scale(grad, 0.3)
    torch.testing.assert_close(wide, expected, rtol=0, atol=0)
    # Without memory every access is an error, and under a factor of 1 there is none.
    nothing = wide.new_empty(0)
    scale(nothing, 1.0)
    with pytest.raises(ptxhost.PtxError):
        scale(nothing, 0.3)


@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards", "sequence", "none"])
def test_token_advantages_ptx(run_ptx: Any, capability: int, normalize: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, credit = torch.rand(9, 4, generator=generator), torch.randn(4, 3, generator=generator)
    segments = torch.randint(0, 3, (9, 70), generator=generator).to(torch.uint8)
    group_ids = torch.tensor([4, -2, 4, 9, -2, 4, -2, 4, 4])
    mask = torch.rand(9, 70, generator=generator) < 0.8
    expected = token_advantages(rewards, segments, credit, group_ids, mask, normalize=normalize)
    sorted_ids, members = torch.sort(group_ids, stable=True)
    ends = torch.searchsorted(sorted_ids, sorted_ids, right=True)
    for order in (0, 1, 2):
        advantages = torch.full((9, 70), math.nan)
        table = torch.zeros(9, 3, dtype=torch.float64)
        run_ptx(
            token_advantages_kernel, (9,), rewards.double(), credit.double(), segments,
            mask.view(torch.uint8), members, sorted_ids, ends, table, advantages, 70, 4, 3, 1e-6,
            NORMALIZE=normalize, BLOCK_MEMBERS=64, BLOCK_TOKENS=128, cc=capability, order=order,
        )  # fmt: skip
        torch.testing.assert_close(advantages, expected, rtol=1e-6, atol=1e-6)


def spilled_bytes(cubin: bytes, tmp_path: Path) -> int:
    """Bytes of local memory of a compiled kernel: spills and stack."""
    path = tmp_path / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    usages = re.findall(r"STACK:(\d+).*?LOCAL:(\d+)", text)
    assert usages, text
    return sum(int(number) for usage in usages for number in usage)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_spills_and_with_wide_accesses(capability: int, tmp_path: Path) -> None:
    for variant in variants():
        compiled = compile_variant(variant, capability)
        assert spilled_bytes(compiled.asm["cubin"], tmp_path) == 0, variant.name
        # A thread's eight logits: 16 bytes an access where all rows are aligned, never otherwise.
        wide = re.search(r"ld\.global\S*\.v4", compiled.asm["ptx"]) is not None
        assert wide == bool(variant.constants.get("ALIGNED")), variant.name


class FakeDriver:
    """Stands in for a GPU that kernels are compiled for but never launched on."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def test_no_recompilation_for_new_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver())
    kernel = policy_rows_kernel
    kernel.device_caches.clear()
    constants = {"ALIGNED": False, "BLOCK": 8192, "TOGETHER": 1, "num_warps": 32, "grid": (1,)}
    logits, ids, mask = (torch.zeros(64, dtype=dtype) for dtype in (torch.bfloat16, torch.int64, torch.uint8))
    values = torch.zeros(65)
    for length in (1, 2, 16, 33, 512, 4096, 70000):
        for batch in (1, 3):
            strides = (length * 151936, 151936)
            # Values of one token are read one by one: their alignment must not count either.
            value = values[batch:]
            kernel.warmup(
                logits, ids, mask, *[value] * 11, logits, *strides, *strides, length, 151936, *PolicyOptions(),
                batch % 2, 0, 1, 1, 1, **constants,
            )  # fmt: skip
    assert len(kernel.device_caches[0][0]) == 1


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    case = make_case(4, 9, 4112)
    results = []
    for device in ("cpu", "cuda"):
        leaf = case.logits.to(device, dtype).requires_grad_()
        tensors = [tensor.to(device) for tensor in (*case.tokens, case.old_logps, case.ref_logps)]
        output = grpo_loss(leaf, *tensors[:3], old_logps=tensors[3], ref_logps=tensors[4], beta=0.1)
        # A factor of 1 leaves the stored gradient alone, another one goes into it.
        (whole,) = torch.autograd.grad(output.loss * 1.0, leaf)
        again = grpo_loss(leaf, *tensors[:3], old_logps=tensors[3], ref_logps=tensors[4], beta=0.1)
        (scaled,) = torch.autograd.grad(again.loss * -0.5, leaf)
        results.append([value.cpu() for value in (*output, whole, scaled)])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=2e-3, atol=2e-4)
    segments = torch.randint(0, 3, (4, 9)).to(torch.uint8)
    inputs = (torch.rand(4, 2), segments, torch.rand(2, 3), torch.tensor([1, 5, 1, 5]), case.mask)
    expected = token_advantages(*inputs)
    torch.testing.assert_close(token_advantages(*(tensor.cuda() for tensor in inputs)).cpu(), expected)
