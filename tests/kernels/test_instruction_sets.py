"""grpo_loss in the row maths of every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support.places import TESTS


def processor_has(name: str) -> bool:
    """Whether the instruction set, or a wider one, is there."""
    order = ["DEFAULT", "AVX2", "AVX512"]
    known = torch.backends.cpu.get_cpu_capability()
    return known in order and order.index(known) >= order.index(name)


_INSTRUCTION_SET_CHECK = """
import sys
import torch
from support.grpo_cases import make_case, with_gradient
from zoomzero_kernels import _C, grpo_loss, reference
assert _C.cpu_capability() == sys.argv[1], _C.cpu_capability()
for vocab in (1, 37, 2050):
    case = make_case(2, 4, vocab)
    options = dict(old_logps=case.old_logps, ref_logps=case.ref_logps, beta=0.1, temperature=0.8)
    truth, truth_grad = with_gradient(reference.grpo_loss, case.logits, *case.tokens, **options)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        ours, grad = with_gradient(grpo_loss, case.logits.to(dtype), *case.tokens, **options)
        for mine, exact in zip(ours, truth):
            torch.testing.assert_close(mine.double(), exact.double(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad.double(), truth_grad, rtol=tolerance, atol=tolerance)
"""


@pytest.mark.parametrize("name", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(name: str) -> None:
    if not processor_has(name):
        pytest.skip(f"this processor has no {name}")
    environment = {**os.environ, "ZOOMZERO_CPU_CAPABILITY": name, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", _INSTRUCTION_SET_CHECK, name]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
