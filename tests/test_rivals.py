"""Where other libraries' GRPO losses go wrong, ours does not; where they are right, ours is equal to them."""

from __future__ import annotations

import pytest
import torch
from grpo_cases import make_case, with_gradient
from torch import Tensor

from zoomzero_kernels import grpo_loss, linear_grpo_loss, reference

liger = pytest.importorskip("liger_kernel.chunked_loss")


def make_head() -> tuple[Tensor, Tensor]:
    """hidden [4, 6, 8] and weight [37, 8], float32."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, 8, generator=generator), torch.randn(37, 8, generator=generator) * 0.5


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_equals_liger_with_one_advantage_a_sequence(loss_type: str, chunk_size: int) -> None:
    case = make_case(4, 6, 37)
    hidden, weight = make_head()
    case.mask[:, 0] = True
    case.old_logps.fill_(-3.5)
    case.ref_logps.fill_(-3.7)
    advantages = case.advantages[:, 0] + 0.5
    results = []
    for ours in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        if ours:
            loss = linear_grpo_loss(
                *leaves, case.token_ids, advantages, case.mask, old_logps=case.old_logps, ref_logps=case.ref_logps,
                beta=0.1, kl_clamp=None, loss_type=loss_type, max_completion_length=9,
            ).loss  # fmt: skip
        else:
            rival = liger.LigerFusedLinearGRPOLoss(
                beta=0.1, compiled=False, chunk_size=chunk_size, epsilon_low=0.2, epsilon_high=0.28,
                loss_type=loss_type, max_completion_length=9,
            )  # fmt: skip
            loss = rival(
                *leaves, case.token_ids, case.mask.float(), advantages, old_per_token_logps=case.old_logps,
                ref_per_token_logps=case.ref_logps,
            )[0]  # fmt: skip
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


# The chunk sizes of the rival's defect: one chunk, several, and one that does not divide the number of rows.
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_advantages_a_token_are_right_for_any_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoomzero_kernels import head_chunks

    monkeypatch.setattr(head_chunks, "rows_per_chunk", lambda num_rows, vocab_size: chunk)
    case = make_case(4, 6, 37)
    hidden, weight = make_head()
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    ours = linear_grpo_loss(*leaves, *case.tokens, old_logps=case.old_logps).loss
    grads = torch.autograd.grad(ours, leaves)
    double = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    truth = reference.linear_grpo_loss(*double, *case.tokens, old_logps=case.old_logps.double()).loss
    torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-6)
    for mine, exact in zip(grads, torch.autograd.grad(truth, double), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_loss() -> None:
    case = make_case(3, 5, 37)
    options = {"loss_type": "dr_grpo", "max_completion_length": 20}
    narrow, _ = with_gradient(grpo_loss, case.logits.float(), *case.tokens, **options)
    wide = [torch.nn.functional.pad(tensor, (0, 4)) for tensor in case.tokens]
    padded = torch.nn.functional.pad(case.logits.float(), (0, 0, 0, 4), value=torch.nan)
    broad, grad = with_gradient(grpo_loss, padded, *wide, **options)
    torch.testing.assert_close(broad.loss, narrow.loss)
    assert (grad[:, 5:] == 0).all()


@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.2, 0.28), (0.0, 0.0), (0.9, 0.01), (0.2, 50.0)])
@pytest.mark.parametrize("distance", [-6.0, -0.3, 0.3, 6.0])
def test_far_off_policy_ratios_with_any_clip(clip_low: float, clip_high: float, distance: float) -> None:
    case = make_case(3, 5, 37)
    old = reference.selective_logps(case.logits, case.token_ids).float() + distance
    options = {"old_logps": old, "clip_low": clip_low, "clip_high": clip_high}
    truth, truth_grad = with_gradient(reference.grpo_loss, case.logits, *case.tokens, **options)
    ours, grad = with_gradient(grpo_loss, case.logits.float(), *case.tokens, **options)
    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.clip_fraction.double(), truth.clip_fraction.double())
    scale = truth_grad.abs().max().item()
    torch.testing.assert_close(grad.double(), truth_grad, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def test_lengths_beyond_65535() -> None:
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
