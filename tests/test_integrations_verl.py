"""The adapters against verl's own registries; skipped where verl is not installed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

core_algos = pytest.importorskip("verl.trainer.ppo.core_algos", exc_type=ImportError)

from zoomzero.integrations import verl as adapter  # noqa: E402  # imports verl itself
from zoomzero_kernels import reference  # noqa: E402


def make_batch() -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]:
    """rewards [6, 2], segments, credit [2, 3], mask and prompt ids; one prompt has a single response."""
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(0, 3, (6, 9), generator=generator).to(torch.uint8)
    mask = torch.rand(6, 9, generator=generator) < 0.8
    index = np.array(["a", "b", "a", "c", "b", "a"], dtype=object)
    return torch.rand(6, 2, generator=generator), segments, torch.rand(2, 3, generator=generator), mask, index


def test_registered_estimator_is_token_adv() -> None:
    rewards, segments, credit, mask, index = make_batch()
    estimator = core_algos.get_adv_estimator_fn("token_adv")
    credited = adapter.credited_rewards(rewards, segments, credit, mask.long())
    advantages, returns = estimator(token_level_rewards=credited, response_mask=mask.long(), index=index, config=None)
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    expected = reference.token_advantages(rewards, segments, credit, groups, mask)
    torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(advantages, returns)


@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards"])
def test_write_advantages(normalize: str) -> None:
    rewards, segments, credit, mask, index = make_batch()
    columns = {"iou": rewards[:, 0].numpy(), "answer": rewards[:, 1].numpy(), "uid": index}
    data = SimpleNamespace(batch={"segments": segments, "response_mask": mask.long()}, non_tensor_batch=columns)
    adapter.write_advantages(data, ["iou", "answer"], credit, normalize=normalize)
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    expected = reference.token_advantages(rewards, segments, credit, groups, mask, normalize=normalize)
    torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="non_tensor_batch must hold zoom"):
        adapter.write_advantages(data, ["zoom"], credit[:1])


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_registered_policy_loss_matches_verl_inside_its_dual_clip(mode: str) -> None:
    generator = torch.Generator().manual_seed(1)
    old, advantages = torch.randn(2, 4, 7, generator=generator).unbind(0)
    mask = (torch.rand(4, 7, generator=generator) < 0.7).long()
    results = []
    for name in ("zoomzero", "vanilla"):
        logp = (old + 0.4 * torch.randn(4, 7, generator=torch.Generator().manual_seed(2))).requires_grad_()
        config = SimpleNamespace(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, global_batch_info={})
        config.get = lambda key, default: 1e9 if key == "clip_ratio_c" else default
        loss, metrics = core_algos.get_policy_loss_fn(name)(old, logp, advantages, mask, mode, config, None)
        loss.backward()
        results.append((loss.detach(), logp.grad, metrics["actor/pg_clipfrac"]))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[0][2] == pytest.approx(results[1][2])


def test_policy_loss_needs_a_config() -> None:
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="verl must pass the actor's config"):
        adapter.policy_loss(zeros, zeros, zeros, zeros)
