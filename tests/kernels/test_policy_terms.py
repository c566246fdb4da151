"""The per-token terms of the policy loss where float32 could lose them, and tracing of their options."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from support.grpo_cases import make_case
from torch import Tensor

from zoomzero_kernels import grpo_loss, reference
from zoomzero_kernels.policy.objectives import PolicyOptions
from zoomzero_kernels.policy.tensors import PolicyTensors
from zoomzero_kernels.policy.terms import policy_terms


# Reference minus policy log-probability, up to where exp(delta) swallows delta in float32 but not in float64.
@pytest.mark.parametrize("delta", [0.001, 5.0, 20.0])
@pytest.mark.parametrize("kl_clamp", [3.0, math.inf])
@pytest.mark.parametrize("unbiased", [False, True])
def test_slope_of_the_kl_term(delta: float, kl_clamp: float, unbiased: bool) -> None:
    logp = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    old, ref = torch.tensor(-1.2, dtype=torch.float64), torch.tensor(-1.5 + delta, dtype=torch.float64)
    estimate = torch.expm1(ref - logp) - (ref - logp)
    kl = estimate.clamp(max=kl_clamp) * ((logp - old).exp() if unbiased else 1.0)
    (0.1 * kl).backward()
    options = PolicyOptions(beta=0.1, kl_clamp=kl_clamp, unbiased_kl=float(unbiased))
    narrow = logp.detach().float()
    one = torch.ones(())
    tokens = PolicyTensors(one, one, torch.zeros(()), one, ref_logps=ref.float())
    terms = policy_terms(narrow, narrow - old.float(), tokens, options)
    assert logp.grad is not None
    torch.testing.assert_close(terms.slope.double(), logp.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(terms.kl.double(), kl.detach(), rtol=1e-5, atol=1e-9)


def test_back_ends_take_the_options_in_one_order(checkout: Path) -> None:
    pytest.importorskip("triton")
    from zoomzero_kernels.triton_kernels.policy_rows import policy_rows_kernel

    header = (checkout / "csrc" / "policy_rows" / "op.h").read_text(encoding="utf-8")
    (struct,) = re.findall(r"struct PolicyOptions \{(.*?)\n\};", header, re.DOTALL)
    assert tuple(re.findall(r"^  float (\w+);", struct, re.MULTILINE)) == PolicyOptions._fields
    names = [parameter.name for parameter in policy_rows_kernel.params]
    first = names.index("inv_temperature") + 1
    assert tuple(names[first : first + len(PolicyOptions._fields) - 1]) == PolicyOptions._fields[1:]


def test_options_may_be_symbolic_numbers() -> None:
    def step(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, temperature: float) -> Tensor:
        ref = torch.zeros_like(advantages) - 3
        return grpo_loss(logits, ids, advantages, mask, temperature=temperature, beta=0.1, ref_logps=ref).loss

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for width, temperature in ((4, 1.0), (9, 0.7), (5, 0.9)):
        case = make_case(2, width, 11)
        leaf = case.logits.float().requires_grad_()
        (got,) = torch.autograd.grad(compiled(leaf, *case.tokens, temperature), leaf)
        truth = case.logits.clone().requires_grad_()
        ref = torch.zeros(2, width) - 3
        loss = reference.grpo_loss(truth, *case.tokens, temperature=temperature, beta=0.1, ref_logps=ref).loss
        torch.testing.assert_close(got.double(), torch.autograd.grad(loss, truth)[0], rtol=1e-5, atol=1e-6)
