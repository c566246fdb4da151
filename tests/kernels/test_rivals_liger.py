"""Where Liger's GRPO losses are right, ours are equal to them; skipped where Liger is not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from support.grpo_cases import make_case
from support.places import SUPPORT, TESTS
from support.rival_libraries import import_rival

from zoomzero_kernels import linear_grpo_loss

liger = import_rival("liger_kernel.chunked_loss")


# Chunks of one sequence and one chunk of all: with one advantage a sequence the rival is right in both.
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("unbiased_kl", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_equals_the_chunked_loss(loss_type: str, level: str, unbiased_kl: bool, chunk_size: int) -> None:
    case = make_case(4, 6, 37)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(4, 6, 8, generator=generator), torch.randn(37, 8, generator=generator) * 0.5
    case.mask[:, 0] = True
    case.old_logps.fill_(-3.5)
    case.ref_logps.fill_(-3.7)
    advantages = case.advantages[:, 0] + 0.5
    results = []
    for ours in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in head]
        if ours:
            loss = linear_grpo_loss(
                *leaves, case.token_ids, advantages, case.mask, old_logps=case.old_logps, ref_logps=case.ref_logps,
                beta=0.1, kl_clamp=None, loss_type=loss_type, max_completion_length=9, temperature=0.8,
                importance_sampling_level=level, unbiased_kl=unbiased_kl,
            ).loss  # fmt: skip
        else:
            rival = liger.LigerFusedLinearGRPOLoss(
                beta=0.1, compiled=False, chunk_size=chunk_size, epsilon_low=0.2, epsilon_high=0.28, temperature=0.8,
                loss_type=loss_type, max_completion_length=9, importance_sampling_level=level,
                use_bias_correction_kl=unbiased_kl,
            )  # fmt: skip
            loss = rival(
                *leaves, case.token_ids, case.mask.float(), advantages, old_per_token_logps=case.old_logps,
                ref_per_token_logps=case.ref_logps,
            )[0]  # fmt: skip
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_equals_the_triton_loss() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS), "ZOOMZERO_REQUIRE_RIVALS": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(SUPPORT / "interpreted_rivals.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    assert re.search(r"[1-9]\d* passed", result.stdout), result.stdout[-4000:]
