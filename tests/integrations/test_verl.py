"""The adapters through verl's own registries and calls; skipped where verl is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from support.documentation import python_block
from support.rival_libraries import import_rival
from torch import Tensor

core_algos = import_rival("verl.trainer.ppo.core_algos")

from verl import DataProto  # noqa: E402  # these imports need verl
from verl.trainer.config import AlgoConfig  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.utils import tensordict_utils  # noqa: E402
from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from zoomzero.integrations import verl as adapter  # noqa: E402
from zoomzero_kernels import reference  # noqa: E402


def actor_config(loss_mode: str, **options: Any) -> ActorConfig:
    """verl's configuration of an actor; a dual clip so far away that it never acts."""
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 1e9, **options}
    loss = PolicyLossConfig(loss_mode=loss_mode)
    return ActorConfig(strategy="fsdp", rollout_n=2, ppo_micro_batch_size_per_gpu=1, policy_loss=loss, **options)


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


def test_compute_advantage_reaches_the_estimator() -> None:
    """The call that verl's trainer makes between rewards and update, on its own batch type."""
    rewards, segments, credit, mask, index = make_batch()
    credited = adapter.credited_rewards(rewards, segments, credit, mask)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": credited, "response_mask": mask.long()}, non_tensors={"uid": index}
    )
    config = AlgoConfig(adv_estimator="token_adv")
    data = compute_advantage(data, adv_estimator=config.adv_estimator, num_repeat=2, config=config)
    expected = reference.token_advantages(rewards, segments, credit, torch.tensor([0, 1, 0, 2, 1, 0]), mask)
    torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(data.batch["returns"], data.batch["advantages"])


def test_equal_rewards_and_garbage_in_padding() -> None:
    estimator = core_algos.get_adv_estimator_fn("token_adv")
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    rewards = torch.where(mask == 1, 0.1, torch.nan)
    advantages, _ = estimator(token_level_rewards=rewards, response_mask=mask, index=np.array(["a", "a", "a"]))
    assert torch.equal(advantages, torch.zeros(3, 3))


@pytest.mark.parametrize("normalize", ["tokens", "segments", "rewards", "sequence", "none"])
def test_write_advantages(normalize: str) -> None:
    rewards, segments, credit, mask, index = make_batch()
    columns = {"iou": rewards[:, 0].numpy(), "answer": rewards[:, 1].numpy(), "uid": index}
    data = DataProto.from_dict(tensors={"segments": segments, "response_mask": mask.long()}, non_tensors=columns)
    adapter.write_advantages(data, ["iou", "answer"], credit, normalize=normalize)
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    expected = reference.token_advantages(rewards, segments, credit, groups, mask, normalize=normalize)
    torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(data.batch["returns"], data.batch["advantages"])
    with pytest.raises(ValueError, match="non_tensor_batch must hold zoom"):
        adapter.write_advantages(data, ["zoom"], credit[:1])


def test_unscored_responses() -> None:
    """The third response has no score: None in a reward function's column, NaN in the rewards of a manager."""
    rewards, segments, credit, mask, index = make_batch()
    scored = torch.tensor([0, 1, 3, 4, 5])
    groups = torch.tensor([0, 1, 2, 1, 0])
    expected = torch.zeros(6, 9)
    expected[scored] = reference.token_advantages(rewards[scored], segments[scored], credit, groups, mask[scored])
    answers = np.array(rewards[:, 1].tolist(), dtype=object)
    answers[2] = None
    columns = {"iou": rewards[:, 0].numpy(), "answer": answers, "uid": index}
    data = DataProto.from_dict(tensors={"segments": segments, "response_mask": mask.long()}, non_tensors=columns)
    with pytest.raises(ValueError, match="rewards must be finite, got nan for response 2, reward 1"):
        adapter.write_advantages(data, ["iou", "answer"], credit)
    adapter.write_advantages(data, ["iou", "answer"], credit, unscored="skip")
    torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-4, atol=1e-5)
    rewards[2, 1] = torch.nan
    with pytest.raises(ValueError, match="rewards must be finite, got nan for response 2, reward 1"):
        adapter.credited_rewards(rewards, segments, credit, mask)
    credited = adapter.credited_rewards(rewards, segments, credit, mask.long(), unscored="skip")
    assert torch.equal(credited.isnan(), mask & (torch.arange(6) == 2).unsqueeze(1))
    estimator = core_algos.get_adv_estimator_fn("token_adv")
    advantages, _ = estimator(token_level_rewards=credited, response_mask=mask.long(), index=index)
    torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-5)


def make_update() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old log-probabilities, log-probabilities, advantages and mask, [4, 7]; the response of row 0 fills the width."""
    generator = torch.Generator().manual_seed(1)
    old, advantages, noise = torch.randn(3, 4, 7, generator=generator).unbind(0)
    lengths = torch.tensor([7, 2, 5, 4]).unsqueeze(1)
    return old, old + 0.4 * noise, advantages, (torch.arange(7) < lengths).long()


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_registered_policy_loss_matches_verl_inside_its_dual_clip(mode: str) -> None:
    old, new, advantages, mask = make_update()
    results = []
    for name in ("zoomzero", "vanilla"):
        logp = new.clone().requires_grad_()
        loss, metrics = core_algos.get_policy_loss_fn(name)(old, logp, advantages, mask, mode, actor_config(name))
        loss.backward()
        results.append((loss.detach(), logp.grad, metrics["actor/pg_clipfrac"]))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[0][2] == pytest.approx(results[1][2])
    assert results[0][2] > 0


@pytest.mark.parametrize("name", ["zoomzero", "vanilla"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ppo_loss_reaches_the_policy_loss(name: str, weighted: bool) -> None:
    """The call that verl's actor makes for every micro-batch: log-probabilities of prompt and response, unpadded."""
    old, new, advantages, mask = make_update()
    prompts, lengths = [3, 1, 2, 4], mask.sum(-1).tolist()
    weights = torch.rand(4, 7, generator=torch.Generator().manual_seed(2)) + 0.5
    leaf = new.clone().requires_grad_()
    # verl's model gives at each position the log-probability of the next token; those before the response are noise.
    rows = [
        torch.cat([torch.full((prompt - 1,), 9.0), row[:length], torch.full((1,), 9.0)])
        for prompt, length, row in zip(prompts, lengths, leaf, strict=True)
    ]
    nested = {
        "response_mask": mask, "old_log_probs": old, "advantages": advantages, "rollout_is_weights": weights,
        "responses": mask,
    }  # fmt: skip
    if not weighted:
        del nested["rollout_is_weights"]
    fields: dict[str, Any] = {
        key: torch.nested.as_nested_tensor(
            [row[:length] for row, length in zip(value, lengths, strict=True)], layout=torch.jagged
        )
        for key, value in nested.items()
    }
    fields["prompts"] = torch.nested.as_nested_tensor([torch.zeros(n) for n in prompts], layout=torch.jagged)
    data = tensordict_utils.get_tensordict(fields, {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None})
    loss, metrics = ppo_loss(actor_config(name), {"log_probs": torch.cat(rows)}, data)
    (grad,) = torch.autograd.grad(loss, leaf)
    ratio = (new - old).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    surrogate = surrogate * weights if weighted else surrogate
    torch.testing.assert_close(loss.detach(), -(surrogate * mask).sum() / mask.sum())
    assert (grad[mask == 0] == 0).all()
    assert grad[mask == 1].ne(0).any()
    assert "actor/pg_clipfrac" in metrics


def test_policy_loss_ignores_what_padding_holds() -> None:
    old, new, advantages, mask = make_update()
    results = []
    for garbage in (0.0, torch.nan):
        tensors = [torch.where(mask == 1, tensor, garbage) for tensor in (old, new, advantages)]
        tensors[1].requires_grad_()
        loss, _ = adapter.policy_loss(*tensors, mask, config=actor_config("zoomzero"))
        (grad,) = torch.autograd.grad(loss, tensors[1])
        results.append((loss.detach(), grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_page_for_readers() -> None:
    """The Python of docs/drop_in.md on verl, run as it stands there."""
    rewards, segments, credit, mask, index = make_batch()
    names: dict[str, Any] = {"rewards": rewards, "segments": segments, "credit": credit, "response_mask": mask.long()}
    exec(python_block("drop_in.md", "import credited_rewards"), names)
    groups = torch.arange(6)
    expected = reference.token_advantages(rewards, segments, credit, groups, mask, normalize="none")
    torch.testing.assert_close(names["token_level_rewards"], expected)
    columns = {"iou": rewards[:, 0].numpy(), "answer": rewards[:, 1].numpy(), "uid": index}
    names["data"] = DataProto.from_dict(
        tensors={"segments": segments, "response_mask": mask.long()}, non_tensors=columns
    )
    exec(python_block("drop_in.md", "import write_advantages"), names)
    groups = torch.tensor([0, 1, 0, 2, 1, 0])
    expected = reference.token_advantages(rewards, segments, credit, groups, mask, normalize="segments")
    torch.testing.assert_close(names["data"].batch["advantages"], expected, rtol=1e-4, atol=1e-5)


def test_verl_imports_the_adapter_by_itself() -> None:
    program = (
        "import verl; from verl.trainer.ppo import core_algos; "
        "print(core_algos.get_adv_estimator_fn('token_adv').__module__, "
        "core_algos.get_policy_loss_fn('zoomzero').__module__)"
    )
    environment = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "zoomzero.integrations.verl"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["zoomzero.integrations.verl"] * 2, done.stderr[-3000:]


def test_policy_loss_needs_a_config() -> None:
    zeros = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="verl must pass the actor's config"):
        adapter.policy_loss(zeros, zeros, zeros, zeros)
