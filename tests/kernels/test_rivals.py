"""Where other libraries' GRPO losses go wrong, ours equals float64 truth. Nothing but this project runs here.

The defects were found in Liger 0.8 (advantages [B, T] in both losses, luspo's backward, the gradient of narrow clips,
lengths as compile keys, lengths beyond 65535) and in trainers that change their loss with the padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.grpo_cases import Case, make_case, with_gradient
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from zoomzero_kernels import grpo_loss, linear_grpo_loss, reference
from zoomzero_kernels.policy import head

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")


def make_parameters() -> tuple[Tensor, Tensor]:
    """hidden [4, 6, 8] and weight [37, 8], float32."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, 8, generator=generator), torch.randn(37, 8, generator=generator) * 0.5


def assert_equals_truth(case: Case, **options: Any) -> None:
    """Loss, clip fraction and gradient of the float32 logits against float64."""
    truth, truth_grad = with_gradient(reference.grpo_loss, case.logits, *case.tokens, **options)
    ours, grad = with_gradient(grpo_loss, case.logits.float(), *case.tokens, **options)
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.clip_fraction.double(), truth.clip_fraction.double())
    scale = max(truth_grad.abs().max().item(), 1.0)
    torch.testing.assert_close(grad.double(), truth_grad, rtol=1e-4, atol=1e-5 * scale)


# Rival: only the first T of the B * T advantages are read, as if they were one a sequence.
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_advantages_a_token(loss_type: str, level: str) -> None:
    case = make_case(4, 6, 37)
    # Every token has an advantage of its own, so that reading the wrong one shows.
    assert case.advantages.unique().numel() > case.advantages.numel() // 2
    options = {"ref_logps": case.ref_logps, "beta": 0.1, "max_completion_length": 9, "loss_type": loss_type}
    assert_equals_truth(case, old_logps=case.old_logps, importance_sampling_level=level, **options)


# Rival: right for a chunk of one sequence only. Here chunks of rows: one, several, one that does not divide them, all.
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_advantages_a_token_for_any_chunk(loss_type: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "rows_per_chunk", lambda *_: chunk)
    case = make_case(4, 6, 37)
    parameters = make_parameters()
    options = {"loss_type": loss_type, "max_completion_length": 9}
    leaves = [tensor.clone().requires_grad_() for tensor in parameters]
    ours = linear_grpo_loss(*leaves, *case.tokens, old_logps=case.old_logps, **options).loss
    grads = torch.autograd.grad(ours, leaves)
    double = [tensor.double().requires_grad_() for tensor in parameters]
    truth = reference.linear_grpo_loss(*double, *case.tokens, old_logps=case.old_logps.double(), **options).loss
    torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-6)
    for mine, exact in zip(grads, torch.autograd.grad(truth, double), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_does_not_change_the_loss(loss_type: str) -> None:
    case = make_case(3, 5, 37)
    options = {"loss_type": loss_type, "max_completion_length": 20}
    narrow, narrow_grad = with_gradient(grpo_loss, case.logits.float(), *case.tokens, **options)
    wide = [torch.nn.functional.pad(tensor, (0, 4)) for tensor in case.tokens]
    padded = torch.nn.functional.pad(case.logits.float(), (0, 0, 0, 4), value=torch.nan)
    broad, grad = with_gradient(grpo_loss, padded, *wide, **options)
    torch.testing.assert_close(broad.loss, narrow.loss)
    torch.testing.assert_close(grad[:, :5], narrow_grad)
    assert (grad[:, 5:] == 0).all()


# Rival: with its upper limit delta below 1 + eps_high the gradient does not fit the loss. Ours has one limit a side, so
# what must hold is: the gradient fits the loss for every width of the clip range, narrow, one-sided and wide.
@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.2, 0.28), (0.0, 0.0), (0.9, 0.01), (0.2, 50.0)])
@pytest.mark.parametrize("distance", [-6.0, -0.3, 0.3, 6.0])
def test_far_off_policy_ratios_with_any_clip(clip_low: float, clip_high: float, distance: float) -> None:
    case = make_case(3, 5, 37)
    old = reference.selective_logps(case.logits, case.token_ids).float() + distance
    assert_equals_truth(case, old_logps=old, clip_low=clip_low, clip_high=clip_high)


# The four corners of the clip: only a ratio above the range with a positive advantage, or below it with a negative one,
# stops the gradient.
@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"), [(2.0, 1.0, False), (2.0, -1.0, True), (0.5, -1.0, False), (0.5, 1.0, True)]
)
def test_the_clip_stops_the_gradient_on_the_right_side(ratio: float, advantage: float, flows: bool) -> None:
    case = make_case(1, 1, 7)
    logp = reference.selective_logps(case.logits, case.token_ids).float()
    old = logp - torch.tensor(ratio).log()
    arguments = (case.token_ids, torch.full((1, 1), advantage), torch.ones(1, 1, dtype=torch.bool))
    ours, grad = with_gradient(grpo_loss, case.logits.float(), *arguments, old_logps=old)
    bounded = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    assert ours.loss.item() == pytest.approx(-bounded, rel=1e-5)
    label = case.token_ids.item()
    expected = -ratio * advantage * (1 - logp.exp().item()) if flows else 0.0
    assert grad[0, 0, int(label)].item() == pytest.approx(expected, rel=1e-4)


def test_luspo_at_the_sequence_level() -> None:
    """Rival: the backward of its luspo reads an expanded tensor with the strides of a full one.

    luspo is the sum over each sequence's tokens, averaged over sequences: dr_grpo with a length of one. All that can be
    expanded is: advantages, mask, log-probabilities and the incoming gradient have strides of 0.
    """
    case = make_case(4, 6, 37)
    advantages = torch.tensor([0.7, -1.1, 0.4, -0.2]).unsqueeze(1).expand(4, 6)
    mask = torch.tensor([True, True, True, True, False, False]).expand(4, 6)
    old = torch.full((), -3.6).expand(4, 6)
    leaf = case.logits.clone().requires_grad_()
    logps = leaf.log_softmax(-1).gather(-1, case.token_ids.unsqueeze(-1)).squeeze(-1)
    ratio = (((logps - old) * mask).sum(-1) / mask.sum(-1)).exp().unsqueeze(-1)
    token_loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    truth = (token_loss * mask).sum(-1).mean()
    (truth_grad,) = torch.autograd.grad(truth, leaf)
    options = {"loss_type": "dr_grpo", "max_completion_length": 1, "importance_sampling_level": "sequence"}
    single = case.logits.float().requires_grad_()
    loss = grpo_loss(single, case.token_ids, advantages, mask, old_logps=old, **options).loss
    (grad,) = torch.autograd.grad(loss.expand(3), single, grad_outputs=torch.full((), 1 / 3).expand(3))
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), truth_grad, rtol=1e-4, atol=1e-6)


def test_lengths_are_no_compile_keys() -> None:
    """Rival: every completion length compiles its kernels again. The Triton kernels' own test counts theirs."""
    counter = CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def loss(logits: Tensor, token_ids: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return grpo_loss(logits, token_ids, advantages, mask).loss

    for width in (4, 5, 7, 16, 33):
        case = make_case(3, width, 11)
        expected = reference.grpo_loss(case.logits, *case.tokens).loss
        torch.testing.assert_close(loss(case.logits.float(), *case.tokens).double(), expected, rtol=1e-4, atol=1e-6)
    # The first length, then one graph of any length.
    assert counter.frame_count <= 2


def test_lengths_beyond_65535() -> None:
    """Rival: the length is a dimension of the grid that CUDA limits to 65535."""
    width = 70000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, width, 3, generator=generator)
    ids = torch.randint(0, 3, (1, width), generator=generator)
    advantages = torch.randn(1, width, generator=generator)
    mask = torch.ones(1, width, dtype=torch.bool)
    ours, grad = with_gradient(grpo_loss, logits, ids, advantages, mask)
    truth, truth_grad = with_gradient(reference.grpo_loss, logits.double(), ids, advantages, mask)
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad.double(), truth_grad, rtol=1e-4, atol=1e-9)
