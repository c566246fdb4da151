"""Loss types that verl has too, and its selections over a batch, against verl's own functions; skipped without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.grpo_cases import Case, make_case, with_gradient
from support.rival_libraries import import_rival
from torch import Tensor

core_algos = import_rival("verl.trainer.ppo.core_algos")

from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402  # these imports need verl

from zoomzero_kernels import grpo_loss, selective_logps  # noqa: E402

CLIP = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}


def make_inputs() -> tuple[Case, Tensor]:
    """A batch in float64 and the log-probabilities of its tokens."""
    case = make_case(4, 7, 23)
    return case, selective_logps(case.logits, case.token_ids)


def verl_loss(mode: str, case: Case, *, clip: dict[str, float] = CLIP, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss of verl's own function, and its gradient in the logits."""
    loss = PolicyLossConfig(loss_mode=mode, **options)
    config = ActorConfig(strategy="fsdp", rollout_n=2, ppo_micro_batch_size_per_gpu=1, policy_loss=loss, **clip)
    leaf = case.logits.clone().requires_grad_()
    logps = leaf.log_softmax(-1).gather(-1, case.token_ids.unsqueeze(-1)).squeeze(-1)
    function = core_algos.get_policy_loss_fn(mode)
    value, _ = function(case.old_logps, logps, case.advantages, case.mask.long(), "token-mean", config)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def our_loss(case: Case, advantages: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    advantages = case.advantages if advantages is None else advantages
    tokens = (case.token_ids, advantages, case.mask)
    output, grad = with_gradient(grpo_loss, case.logits, *tokens, old_logps=case.old_logps, **options)
    return output.loss, grad


# verl's options and ours of the same meaning; bounds that act on some of the tokens.
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpg": ({}, {}),
    "dro": ({"dro_beta": 0.3}, {"dro_beta": 0.3}),
    "dppo_tv": ({"clip": {"clip_ratio_low": 0.01, "clip_ratio_high": 0.02, "clip_ratio_c": 1.3}},
                {"clip_low": 0.01, "clip_high": 0.02, "ratio_cap": 1.3}),
    "dppo_kl": ({"clip": {"clip_ratio_low": 0.001, "clip_ratio_high": 0.002, "clip_ratio_c": 1.3}},
                {"clip_low": 0.001, "clip_high": 0.002, "ratio_cap": 1.3}),
    "geo_mean": ({}, {"clip_low": 0.2, "clip_high": 0.28}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_types(name: str) -> None:
    if name == "dro" and name not in core_algos.POLICY_LOSS_REGISTRY:
        pytest.skip("verl 0.8 has no dro")
    case, _ = make_inputs()
    theirs, ours = LOSSES[name]
    wanted, wanted_grad = verl_loss(name, case, **theirs)
    loss, grad = our_loss(case, loss_type=name, **ours)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(grad, wanted_grad)
    assert wanted_grad.ne(0).any(-1).sum() > 8


def covariance(case: Case, logps: Tensor) -> Tensor:
    """What each valid token adds to the covariance of advantages and log-probabilities."""

    def centred(values: Tensor) -> Tensor:
        return values - values[case.mask].mean()

    return centred(case.advantages) * centred(logps)


def test_clip_cov_is_a_selection_by_token_weights() -> None:
    """verl draws from the tokens of a band of covariances; a ratio of 1 draws them all."""
    case, logps = make_inputs()
    ratio, band = (logps - case.old_logps).exp(), (0.1, 2.0)
    clipped = ratio.clamp(0.8, 1.28) * case.advantages < ratio * case.advantages
    each = covariance(case, logps)
    drawn = (each > band[0]) & (each < band[1]) & case.mask & ~clipped
    wanted, wanted_grad = verl_loss("clip_cov", case, clip_cov_ratio=1.0, clip_cov_lb=band[0], clip_cov_ub=band[1])
    loss, grad = our_loss(case, token_weights=(~drawn).double())
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(grad, wanted_grad)
    assert drawn.any()
    assert not torch.allclose(our_loss(case)[1], grad)


def test_kl_cov_is_a_shift_of_advantages() -> None:
    """coef * |log r| of the tokens of largest covariance has the slope of coef * sign(log r) taken from A * r."""
    case, logps = make_inputs()
    coef, log_ratio, num_valid = 0.5, logps - case.old_logps, int(case.mask.sum())
    chosen = torch.zeros_like(case.mask)
    largest = covariance(case, logps).masked_fill(~case.mask, -torch.inf).flatten().topk(num_valid // 2).indices
    chosen.view(-1)[largest] = True
    sign = torch.where(chosen, log_ratio.sign(), 0.0)
    wanted, wanted_grad = verl_loss("kl_cov", case, kl_cov_ratio=0.5, ppo_kl_coef=coef)
    # Without clipping, as verl.
    loss, grad = our_loss(case, case.advantages - coef * sign / log_ratio.exp(), clip_low=1 - 1e-9, clip_high=1e9)
    penalty = (coef * sign * (log_ratio - 1))[case.mask].sum() / num_valid
    torch.testing.assert_close(loss + penalty, wanted)
    torch.testing.assert_close(grad, wanted_grad)
