"""Checks of rows at the edges of the numbers, for the kernels of the CPU and the interpreted ones alike.

Large logits at any temperature, a vocabulary of one, NaN under an advantage of 0, and ratios that overflow.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from support.grpo_cases import with_gradient
from torch import Tensor

from zoomzero_kernels import grpo_loss, linear_grpo_loss, reference, selective_logps

TEMPERATURES = (1.0, 0.3, 0.7, 1.3, 3.0)
# Sizes of logits; cut to a quarter of the dtype's largest number.
SCALES = (1.0, 1e4, 1e6, 1e30)
# A sequence shares one ratio among its tokens, so a NaN belongs to all of them.
FAULTS = (("token", "nan"), ("token", "inf"), ("token", "ratio"), ("sequence", "ratio"))


def extreme_case(scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits [1, 6, 40] around ``scale`` that differ by little, by much or not at all; the tokens of the largest."""
    generator = torch.Generator().manual_seed(0)
    limit = min(scale, torch.finfo(dtype).max / 4)
    logits = torch.randn(1, 6, 40, generator=generator, dtype=torch.float64)
    # One unit in the last place of float32 apart, which a product with 1 / temperature may round together or apart.
    steps = torch.arange(40, dtype=torch.float64) * limit * 2.0**-23
    logits[0, 0] = limit + steps
    logits[0, 1] = -limit + steps
    logits[0, 2] *= limit
    logits[0, 3] = limit
    logits[0, 4] += limit
    logits = logits.to(dtype)
    return logits, logits.argmax(-1)


def check_log_probabilities(dtype: torch.dtype, temperature: float, scale: float) -> None:
    """They are exact and not above 0, and entropies not below."""
    logits, ids = extreme_case(scale, dtype)
    logps, entropy = selective_logps(logits, ids, temperature=temperature, with_entropy=True)
    truth = reference.selective_logps(logits.double(), ids, temperature=temperature, with_entropy=True)
    mask, zeros = torch.ones(ids.shape, dtype=torch.bool), torch.zeros(ids.shape)
    output = grpo_loss(logits, ids, zeros, mask, temperature=temperature)
    for got, want in ((logps, truth[0]), (entropy, truth[1]), (output.logps, truth[0]), (output.entropy, truth[1])):
        # Differences of logits are exact, so a large logit costs no digits.
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-5)
    assert logps.max() <= 0
    assert output.logps.max() <= 0
    assert entropy.min() >= 0


def check_any_temperature(dtype: torch.dtype) -> None:
    """The smallest and the largest temperature: all on the largest logit, and uniform."""
    logits = torch.tensor([[[1.0, 2.0, 3.0, -torch.inf, 3.0], [0.5, 0.25, 0.0, -1.0, -2.0]]], dtype=dtype)
    ids = torch.tensor([[2, 0]])
    for temperature, expected in ((5e-324, [0.5, 1.0]), (1e-39, [0.5, 1.0]), (1e38, [0.25, 0.2])):
        logps = selective_logps(logits, ids, temperature=temperature)
        torch.testing.assert_close(logps.exp()[0].double(), torch.tensor(expected, dtype=torch.float64))


def check_vocabulary_of_one(dtype: torch.dtype, temperature: float) -> None:
    """Its only token has the log-probability 0, and no gradient."""
    logits = torch.tensor([[0.1], [1e4], [-3e4], [1.7]], dtype=dtype).unsqueeze(0).requires_grad_()
    ids, mask = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
    output, grad = with_gradient(grpo_loss, logits.detach(), ids, torch.ones(1, 4), mask, temperature=temperature)
    assert torch.equal(output.logps, torch.zeros_like(output.logps))
    assert torch.equal(grad, torch.zeros_like(grad))
    logps, entropy = selective_logps(logits, ids, temperature=temperature, with_entropy=True)
    (grad,) = torch.autograd.grad((logps + entropy).sum(), logits)
    assert torch.equal(logps.detach(), torch.zeros_like(logps))
    assert torch.equal(grad, torch.zeros_like(grad))


def hopeless_case(fault: str, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Logits [1, 4, 9], the tensors of tokens, old log-probabilities, and which tokens are sound.

    The second and the last token have an advantage of 0 and a NaN or inf among their logits, or log-ratios of 1000.
    """
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 4, 9, generator=generator).to(dtype)
    old = torch.full((1, 4), -2.2)
    good = torch.tensor([[True, False, True, False]])
    if fault == "ratio":
        old = torch.where(good, old, -1002.0)
    else:
        logits[0, 1, 4] = math.nan if fault == "nan" else math.inf
        logits[0, 3] = logits[0, 1, 4]
    advantages = torch.tensor([[0.7, 0.0, -1.1, 0.0]])
    ids = torch.randint(0, 9, (1, 4), generator=generator)
    return logits, (ids, advantages, torch.ones(1, 4, dtype=torch.bool)), old, good


def check_advantage_of_zero(dtype: torch.dtype, level: str, fault: str, on_policy: bool) -> None:
    """Loss and gradient are those of the sound tokens; NaN shows in the log-probabilities."""
    logits, (ids, advantages, mask), old, good = hopeless_case(fault, dtype)
    options: dict[str, Any] = {"importance_sampling_level": level} | ({} if on_policy else {"old_logps": old})
    if level == "sequence":
        advantages = torch.zeros_like(advantages)
    output, grad = with_gradient(grpo_loss, logits, ids, advantages, mask, **options)
    clean = torch.where(good.unsqueeze(-1), logits, 0.0).double()
    truth, truth_grad = with_gradient(reference.grpo_loss, clean, ids, advantages, mask, **options)
    torch.testing.assert_close(output.loss.double(), truth.loss, rtol=1e-5, atol=1e-7)
    tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 1e-2
    torch.testing.assert_close(grad.double(), truth_grad, rtol=tolerance, atol=tolerance)
    assert (grad[~good] == 0).all()
    if fault != "ratio":
        assert output.logps[~good].isnan().all()
        assert output.logps[good].isfinite().all()


def check_hidden_states_under_an_advantage_of_zero(fault: str) -> None:
    """What check_advantage_of_zero demands, behind a head."""
    _, tokens, old, good = hopeless_case(fault, torch.float32)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 4, 8, generator=generator), torch.randn(9, 8, generator=generator)
    if fault == "nan":
        hidden[~good] = math.nan
    leaf = hidden.requires_grad_()
    loss = linear_grpo_loss(leaf, weight, *tokens, old_logps=old).loss
    (grad,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert (grad[~good] == 0).all()


def check_overflowing_ratio_beside_a_kl_term(dtype: torch.dtype) -> None:
    """The unbiased estimate multiplies a ratio beyond all numbers by 0, where policy and reference agree."""
    logits, (ids, advantages, mask), _, _ = hopeless_case("ratio", dtype)
    logps = grpo_loss(logits, ids, advantages, mask).logps
    options = {"old_logps": torch.full_like(logps, -1e4), "ref_logps": logps, "beta": 0.1, "unbiased_kl": True}
    output, grad = with_gradient(grpo_loss, logits, ids, torch.zeros_like(advantages), mask, **options)
    assert output.kl.isfinite()
    assert not grad.isnan().any()


def check_no_upstream_gradient(dtype: torch.dtype, bad: float) -> None:
    """A row whose log-probability and entropy nobody uses has no gradient, whatever it holds."""
    leaf = torch.zeros(1, 2, 5, dtype=dtype)
    leaf[0, 0, 1] = bad
    leaf.requires_grad_()
    logps, entropy = selective_logps(leaf, torch.zeros(1, 2, dtype=torch.int64), with_entropy=True)
    (grad,) = torch.autograd.grad((logps + entropy)[:, 1].sum(), leaf)
    assert (grad[0, 0] == 0).all()
    assert grad.isfinite().all()
