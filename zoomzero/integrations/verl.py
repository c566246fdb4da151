"""verl: importing this module registers the advantage estimator "token_adv" and the policy loss "zoomzero".

    algorithm.adv_estimator=token_adv   actor_rollout_ref.actor.policy_loss.loss_mode=zoomzero

verl hands an estimator nothing but token_level_rewards, the response mask and the prompts' ids, and a policy loss
nothing but log-probabilities. So the crediting happens where rewards are made: a reward manager writes
``credited_rewards`` into token_level_rewards, and "token_adv" normalises them over all valid tokens of a prompt. For
the other normalisations call ``write_advantages`` from a trainer that overrides how advantages are computed.

A response that could not be scored, whose reward is None or NaN, is an error unless ``unscored="skip"`` is passed: then
it takes no part in the statistics of its prompt and has advantages of 0. Its token_level_rewards are NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss

from zoomzero_kernels import token_advantages


def _group_ids(index: np.ndarray, device: torch.device) -> Tensor:
    """verl's prompt ids, which are strings, as integers."""
    return torch.from_numpy(np.unique(index, return_inverse=True)[1].reshape(-1)).to(device)


def credited_rewards(
    rewards: Tensor, segments: Tensor, credit: Tensor, response_mask: Tensor, *, unscored: str = "error"
) -> Tensor:
    """Per-token rewards [B, T] for token_level_rewards: ``sum_r credit[r, segments[b, t]] * rewards[b, r]``.

    With ``unscored="skip"`` the valid tokens of a response with a NaN reward are NaN, as "token_adv" expects them.
    """
    ids, valid = torch.arange(rewards.shape[0], device=rewards.device), response_mask.bool()
    credited = token_advantages(rewards, segments, credit, ids, valid, normalize="none", unscored=unscored)
    return credited.masked_fill(valid & rewards.isnan().any(dim=1, keepdim=True), torch.nan)


@register_adv_est("token_adv")
def token_adv(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: np.ndarray,
    config: Any = None,
    epsilon: float = 1e-6,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """TokenAdv: token rewards [B, T] standardised over all valid tokens of each prompt's responses.

    A prompt with one scored response keeps mean 0 and standard deviation 1; a response with a NaN on a valid token was
    not scored. Returns advantages and returns: the same tensor.
    """
    groups, valid = _group_ids(index, token_level_rewards.device), response_mask.bool()
    scored = ~(valid & token_level_rewards.isnan()).any(dim=1, keepdim=True)
    valid = valid & scored
    # float64: sums of equal float32 rewards are exact, so a prompt whose rewards are all equal gives exactly 0.
    values = torch.where(valid, token_level_rewards, 0.0).double()
    totals = values.new_zeros(groups.shape[0], 3)
    totals.index_add_(0, groups, torch.stack([valid.sum(-1), values.sum(-1), scored[:, 0].double()], dim=1))
    num_tokens, sums, num_responses = totals.unbind(1)
    alone = (num_responses < 2) | (num_tokens < 2)
    mean = torch.where(alone, 0.0, sums / num_tokens.clamp(min=1))
    centred = torch.where(valid, values - mean[groups].unsqueeze(1), 0.0)
    squares = torch.zeros_like(sums).index_add_(0, groups, centred.square().sum(-1))
    deviation = torch.where(alone, 1.0, (squares / (num_tokens - 1).clamp(min=1)).sqrt())
    advantages = (centred / (deviation[groups].unsqueeze(1) + epsilon)).float()
    return advantages, advantages


@register_policy_loss("zoomzero")
def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The published clipped loss with per-token advantages: asymmetric clipping and no dual clip."""
    if config is None:
        raise ValueError("policy_loss: verl must pass the actor's config, got None; check the version of verl")
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    # Padding may hold anything, and what is multiplied by 0 afterwards would still turn NaN into a NaN gradient.
    valid = response_mask.bool()
    ratio = torch.where(valid, log_prob - old_log_prob, 0.0).exp()
    credit = torch.where(valid, advantages, 0.0)
    unclipped = ratio * credit
    bounded = ratio.clamp(1 - low, 1 + high) * credit
    token_loss = -torch.minimum(unclipped, bounded)
    if rollout_is_weights is not None:
        token_loss = token_loss * torch.where(valid, rollout_is_weights, 0.0)
    loss = agg_loss(
        loss_mat=token_loss, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info
    )
    clipped = ((bounded < unclipped) & valid).sum() / valid.sum().clamp(min=1)
    return loss, {"actor/pg_clipfrac": clipped.detach().item()}


def write_advantages(
    data: Any, reward_keys: list[str], credit: Tensor, *, normalize: str = "tokens", unscored: str = "error"
) -> Any:
    """Set ``advantages`` and ``returns`` of a verl DataProto from its separate rewards.

    data.batch must hold ``segments`` uint8 [B, T] and ``response_mask`` [B, T], data.non_tensor_batch one array [B] for
    each of ``reward_keys`` and the prompts' ``uid``; credit [R, S] has a row for each key. A reward may be None or NaN,
    see ``unscored`` of :func:`zoomzero_kernels.token_advantages`.
    """
    missing = [key for key in (*reward_keys, "uid") if key not in data.non_tensor_batch]
    if missing:
        raise ValueError(
            f"write_advantages: non_tensor_batch must hold {', '.join(missing)}, got {sorted(data.non_tensor_batch)}; "
            "return them from the reward function"
        )
    mask = data.batch["response_mask"].bool()
    columns = [torch.as_tensor(np.asarray(data.non_tensor_batch[key], dtype=np.float64)) for key in reward_keys]
    rewards = torch.stack(columns, dim=1).float().to(mask.device)
    advantages = token_advantages(
        rewards,
        data.batch["segments"],
        credit.to(mask.device),
        _group_ids(data.non_tensor_batch["uid"], mask.device),
        mask,
        normalize=normalize,
        unscored=unscored,
    )
    data.batch["advantages"] = data.batch["returns"] = advantages
    return data
