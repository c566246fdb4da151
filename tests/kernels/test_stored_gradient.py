"""Gradients that the forward pass computes: whose memory they take, what is written again, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.grpo_cases import make_case, with_gradient
from torch import Tensor

from zoomzero_kernels import GRPOLossOutput, grpo_loss, linear_grpo_loss, linear_selective_logps, selective_logps

CASE = make_case()
HIDDEN = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
WEIGHT = torch.randn(37, 8, generator=torch.Generator().manual_seed(2))
Loss = Callable[[Tensor], GRPOLossOutput]


def inplace_loss(logits: Tensor) -> GRPOLossOutput:
    # A tensor of its own, since its memory is given up.
    return grpo_loss(logits * 1, *CASE.tokens, old_logps=CASE.old_logps, inplace=True)


def sequence_loss(logits: Tensor) -> GRPOLossOutput:
    return grpo_loss(logits, *CASE.tokens, old_logps=CASE.old_logps, importance_sampling_level="sequence")


# Each loss and the tensor that it is differentiated in; the gradient is stored in a different way in each.
LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "grpo_loss": (lambda logits: grpo_loss(logits, *CASE.tokens, old_logps=CASE.old_logps), CASE.logits.float()),
    "float64": (lambda logits: grpo_loss(logits, *CASE.tokens, old_logps=CASE.old_logps), CASE.logits),
    "float16": (lambda logits: grpo_loss(logits, *CASE.tokens, old_logps=CASE.old_logps), CASE.logits.half()),
    "inplace": (inplace_loss, CASE.logits.float()),
    "sequence": (sequence_loss, CASE.logits.float()),
    "linear hidden": (lambda hidden: linear_grpo_loss(hidden, WEIGHT, *CASE.tokens), HIDDEN),
    "linear weight": (lambda weight: linear_grpo_loss(HIDDEN, weight, *CASE.tokens), WEIGHT),
    "linear bias": (lambda bias: linear_grpo_loss(HIDDEN, WEIGHT, *CASE.tokens, bias=bias), torch.zeros(37)),
}
each_loss = pytest.mark.parametrize("name", list(LOSSES))


# 1 hands the stored gradient out as it is, any other factor overwrites it, once nobody needs it again.
@each_loss
@pytest.mark.parametrize("upstreams", [(1.0, 0.1), (0.1, 1.0), (1.0, 1.0, 3.0), (2.0, -2.0, 0.0)])
def test_what_autograd_returned_is_not_written_again(name: str, upstreams: tuple[float, ...]) -> None:
    loss, values = LOSSES[name]
    leaf = values.clone().requires_grad_()
    output = loss(leaf)
    returned = []
    for index, upstream in enumerate(upstreams):
        keep = index + 1 < len(upstreams)
        (grad,) = torch.autograd.grad(output.loss * upstream, leaf, retain_graph=keep)
        returned.append((grad, grad.clone()))
    for grad, as_returned in returned:
        assert torch.equal(grad, as_returned)
    unit = returned[0][1].double() / upstreams[0]
    for (grad, _), upstream in zip(returned, upstreams, strict=True):
        torch.testing.assert_close(grad.double(), unit * upstream, rtol=2e-3, atol=1e-6)


@each_loss
def test_writing_into_a_returned_gradient_changes_no_later_one(name: str) -> None:
    loss, values = LOSSES[name]
    leaf = values.clone().requires_grad_()
    output = loss(leaf)
    (first,) = torch.autograd.grad(output.loss, leaf, retain_graph=True)
    expected = first.clone()
    first.zero_()
    assert torch.equal(torch.autograd.grad(output.loss, leaf)[0], expected)


@each_loss
def test_gradients_accumulate_over_kept_graphs(name: str) -> None:
    loss, values = LOSSES[name]
    leaf = values.clone().requires_grad_()
    output = loss(leaf)
    output.loss.backward(retain_graph=True)
    assert leaf.grad is not None
    once = leaf.grad.clone()
    output.loss.backward(retain_graph=True)
    output.loss.backward()
    torch.testing.assert_close(leaf.grad, 3 * once, rtol=2e-3, atol=1e-7)


SECOND: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    **{name: (lambda x, loss=loss: loss(x).loss, values) for name, (loss, values) in LOSSES.items()},
    "selective_logps": (lambda logits: selective_logps(logits, CASE.token_ids).sum(), CASE.logits.float()),
    "linear_selective_logps": (lambda x: linear_selective_logps(x, WEIGHT, CASE.token_ids).sum(), HIDDEN),
}


@pytest.mark.parametrize("name", list(SECOND))
# A square has a second derivative of its own, to which a gradient taken for a constant would look like the whole.
@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_an_error(name: str, power: int) -> None:
    function, values = SECOND[name]
    leaf = values.clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf) ** power, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives are not implemented|no autograd formula"):
        torch.autograd.grad(grad.square().sum() + leaf.square().sum(), leaf)


def test_second_derivatives_name_the_op_and_the_remedy() -> None:
    leaf = CASE.logits.float().requires_grad_()
    (grad,) = torch.autograd.grad(grpo_loss(leaf, *CASE.tokens).loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^grpo_loss: second .* differentiate zoomzero_kernels.reference.grpo_loss"):
        grad.sum().backward()


def test_a_recorded_gradient_has_the_same_numbers() -> None:
    leaf = CASE.logits.float().requires_grad_()
    loss = grpo_loss(leaf, *CASE.tokens).loss
    (recorded,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert torch.equal(recorded.detach(), torch.autograd.grad(loss, leaf)[0])


@pytest.mark.parametrize("upstream", [1.0, 0.25, -3.0])
def test_inplace_takes_the_memory_of_the_logits(upstream: float) -> None:
    case = make_case()
    _, expected = with_gradient(
        grpo_loss, case.logits.float(), *case.tokens, upstream=upstream, old_logps=case.old_logps
    )
    leaf = case.logits.float().requires_grad_()
    logits = leaf * 1
    addresses: list[int] = []
    logits.register_hook(lambda grad: addresses.append(grad.data_ptr()))
    output = grpo_loss(logits, *case.tokens, old_logps=case.old_logps, inplace=True)
    (output.loss * upstream).backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected)
    assert addresses == [logits.data_ptr()]


def test_inplace_refuses_logits_that_another_backward_needs() -> None:
    leaf = CASE.logits.float().requires_grad_()
    output = grpo_loss(leaf.exp(), *CASE.tokens, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.loss.backward()


def overlapping(leaf: Tensor, kind: str) -> Tensor:
    """Logits [3, 5, 37] several of which are one number in memory."""
    if kind == "batch":
        return leaf[:1].expand(3, 5, 37)
    if kind == "tokens":
        return leaf[:, :1].expand(3, 5, 37)
    if kind == "vocabulary":
        return leaf[:, :, :1].expand(3, 5, 37)
    # Windows that slide by less than their width.
    return leaf.view(-1).as_strided((3, 5, 37), (5 * 36, 36, 1))


@pytest.mark.parametrize("kind", ["batch", "tokens", "vocabulary", "windows"])
def test_inplace_refuses_logits_that_share_memory(kind: str) -> None:
    leaf = CASE.logits.float().requires_grad_()
    with pytest.raises(ValueError, match=r"inplace=True needs logits with memory of their own, got strides"):
        grpo_loss(overlapping(leaf * 1, kind), *CASE.tokens, inplace=True)
    # The remedies give the gradient of the plain call.
    (expected,) = torch.autograd.grad(grpo_loss(overlapping(leaf, kind).clone(), *CASE.tokens).loss, leaf)
    for logits, inplace in ((overlapping(leaf, kind), False), (overlapping(leaf, kind).contiguous(), True)):
        torch.testing.assert_close(
            torch.autograd.grad(grpo_loss(logits, *CASE.tokens, inplace=inplace).loss, leaf)[0], expected
        )


# Slices and permutations leave every number its own memory.
@pytest.mark.parametrize("kind", ["slice", "transposed", "sparse"])
def test_inplace_takes_strided_logits(kind: str) -> None:
    values = CASE.logits.float()
    (expected,) = torch.autograd.grad(grpo_loss(leaf := values.clone().requires_grad_(), *CASE.tokens).loss, leaf)
    leaf = values.clone().requires_grad_()
    if kind == "slice":
        logits = torch.cat([leaf, leaf], dim=1)[:, :5]
    elif kind == "transposed":
        logits = leaf.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    else:
        logits = torch.stack([leaf, leaf], dim=-1)[..., 0]
    (grad,) = torch.autograd.grad(grpo_loss(logits, *CASE.tokens, inplace=True).loss, leaf)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("shape", [(0, 5, 37), (3, 0, 37)])
def test_inplace_takes_empty_logits_of_any_strides(shape: tuple[int, int, int]) -> None:
    logits = torch.empty(1, 1, 1).expand(shape).requires_grad_()
    tokens = (torch.zeros(shape[:2]).long(), torch.zeros(shape[:2]), torch.zeros(shape[:2]).bool())
    assert grpo_loss(logits, *tokens, inplace=True).loss.item() == 0
