"""linear_selective_logps against selective_logps of explicit logits, its gradients and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.grpo_cases import assert_within_budget, make_case
from torch import Tensor

from zoomzero_kernels import linear_selective_logps, reference
from zoomzero_kernels.policy import head


def make_parameters(width: int = 6, vocab: int = 37) -> list[Tensor]:
    """hidden [3, 5, D], weight [V, D], bias [V] in float64, exact in bfloat16."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((3, 5, width), (vocab, width), (vocab,))
    return [torch.randn(shape, generator=generator).bfloat16().double() for shape in shapes]


def run(function: Any, parameters: list[Tensor], token_ids: Tensor, with_bias: bool) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in parameters[: 2 + with_bias]]
    bias = leaves[2] if with_bias else None
    logps, entropy = function(*leaves[:2], token_ids, bias=bias, temperature=0.8, with_entropy=True)
    mixture = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)
    total = (logps * mixture + entropy * mixture.flip(0)).sum()
    return logps.detach(), entropy.detach(), *torch.autograd.grad(total, leaves)


# One chunk and several, every dtype, with and without bias; the row pass itself is tested with selective_logps.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_matches_float64_truth(
    dtype: torch.dtype, with_bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "rows_per_chunk", lambda num_rows, vocab_size, like: chunk)
    case, parameters = make_case(), make_parameters()
    truth = run(reference.linear_selective_logps, parameters, case.token_ids, with_bias)
    narrow = [tensor.to(dtype) for tensor in parameters]
    plain = run(reference.linear_selective_logps, narrow, case.token_ids, with_bias)
    ours = run(linear_selective_logps, narrow, case.token_ids, with_bias)
    epsilon = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for got, same, exact in zip(ours, plain, truth, strict=True):
        assert_within_budget(got, same, exact, epsilon)


def test_gradcheck() -> None:
    case = make_case()
    leaves = [tensor.requires_grad_() for tensor in make_parameters()]

    def both(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return tuple(linear_selective_logps(hidden, weight, case.token_ids, bias=bias, with_entropy=True))

    assert torch.autograd.gradcheck(both, leaves)


def test_opcheck_and_compile() -> None:
    case = make_case()
    hidden, weight, bias = (tensor.float().requires_grad_() for tensor in make_parameters())
    arguments = (hidden, weight, bias, case.token_ids, case.mask, 0.9, [1.0, 0.0])
    torch.library.opcheck(torch.ops.zoomzero.linear_selective_logps.default, arguments)

    def total(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_selective_logps(hidden, weight, case.token_ids, bias=bias).sum()

    expected = torch.autograd.grad(total(hidden, weight, bias), (hidden, weight, bias))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(hidden, weight, bias), (hidden, weight, bias)), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": -2.0}, ValueError, "temperature must be finite and > 0, got -2.0"),
        ({"hidden": torch.zeros(15, 6)}, ValueError, "hidden must be floating point"),
        ({"weight": torch.zeros(37, 5)}, ValueError, r"weight must be \[V, D\] with D = 6"),
        ({"token_ids": torch.zeros(3, 4).long()}, ValueError, r"token_ids must be \[B, T\]"),
        ({"token_ids": torch.full((3, 5), 37)}, ValueError, r"token_ids must be in \[0, 37\)"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    hidden, weight, _ = (tensor.float() for tensor in make_parameters())
    arguments = {"hidden": hidden, "weight": weight, "token_ids": make_case().token_ids, **change}
    with pytest.raises(error, match=f"linear_selective_logps: {message}"):
        linear_selective_logps(**arguments)
