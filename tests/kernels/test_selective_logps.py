"""selective_logps against float64 truth, its gradients and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.grpo_cases import assert_within_budget, make_case
from torch import Tensor

from zoomzero_kernels import reference, selective_logps


def run(function: Any, logits: Tensor, token_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropy and the gradient of a mixture of both in the logits."""
    leaf = logits.clone().requires_grad_()
    logps, entropy = function(leaf, token_ids, temperature=temperature, with_entropy=True)
    mixture = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)
    (grad,) = torch.autograd.grad((logps * mixture + entropy * mixture.flip(0)).sum(), leaf)
    return logps.detach(), entropy.detach(), grad


# 40000 is over a megabyte of float64 a row, so that rows are processed in several chunks.
@pytest.mark.parametrize("vocab", [1, 19, 4097, 40000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_matches_float64_truth(vocab: int, dtype: torch.dtype, temperature: float) -> None:
    case = make_case(2, 3, vocab)
    truth = run(reference.selective_logps, case.logits, case.token_ids, temperature)
    plain = run(reference.selective_logps, case.logits.to(dtype), case.token_ids, temperature)
    ours = run(selective_logps, case.logits.to(dtype), case.token_ids, temperature)
    epsilon = {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 1e-3)
    for got, same, exact, name in zip(ours, plain, truth, ("logps", "entropy", "gradient"), strict=True):
        assert got.dtype == same.dtype
        assert_within_budget(got, same, exact, epsilon, name)


def test_gradcheck() -> None:
    case = make_case(2, 2, 6)

    def both(logits: Tensor) -> tuple[Tensor, ...]:
        return tuple(selective_logps(logits, case.token_ids, temperature=0.8, with_entropy=True))

    assert torch.autograd.gradcheck(both, (case.logits.requires_grad_(),))


def test_minus_infinity_has_no_share() -> None:
    logits = torch.tensor([[[0.0, -torch.inf, 1.0]]], requires_grad=True)
    logps, entropy = selective_logps(logits, torch.tensor([[2]]), with_entropy=True)
    expected = torch.tensor([0.0, 1.0], dtype=torch.float64).log_softmax(-1)
    assert logps.item() == pytest.approx(expected[1].item(), abs=1e-6)
    assert entropy.item() == pytest.approx(-(expected.exp() * expected).sum().item(), abs=1e-6)
    (grad,) = torch.autograd.grad((logps + entropy).sum(), logits)
    assert grad.isfinite().all()
    assert grad[0, 0, 1] == 0


def test_opcheck_and_compile() -> None:
    case = make_case()
    logits = case.logits.float().requires_grad_()
    torch.library.opcheck(torch.ops.zoomzero.selective_logps.default, (logits, case.token_ids, case.mask, 0.9))
    normaliser = torch.zeros(*case.mask.shape, 2)
    arguments = (logits.detach(), case.token_ids, case.mask, case.old_logps, normaliser, case.old_logps, None, 0.9)
    torch.library.opcheck(torch.ops.zoomzero.selective_logps_backward.default, arguments)

    def both(logits: Tensor) -> Tensor:
        logps, entropy = selective_logps(logits, case.token_ids, with_entropy=True)
        return (logps + entropy).sum()

    (expected,) = torch.autograd.grad(both(logits), logits)
    (got,) = torch.autograd.grad(torch.compile(both, fullgraph=True, backend="aot_eager")(logits), logits)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
        ({"logits": torch.zeros(3, 37)}, ValueError, "logits must be floating point"),
        ({"token_ids": torch.zeros(3, 5)}, TypeError, "token_ids must be int64 or int32"),
        ({"token_ids": torch.zeros(3, 6).long()}, ValueError, r"token_ids must be \[B, T\] = \[3, 5\]"),
        ({"token_ids": torch.full((3, 5), 99)}, ValueError, r"token_ids must be in \[0, 37\) on valid tokens, got 99"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    case = make_case()
    with pytest.raises(error, match=f"selective_logps: {message}"):
        selective_logps(**{"logits": case.logits.float(), "token_ids": case.token_ids, **change})
