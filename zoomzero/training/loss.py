"""The policy loss of a batch of groups, computed through the (wrapped) model's own forward."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from zoomzero.models.head import HeadProbe
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.groups import GroupBatch
from zoomzero.training.packing import PackedForward
from zoomzero_kernels import GRPOLossOutput, linear_grpo_loss, linear_selective_logps


def group_loss(
    forward: PackedForward, groups: GroupBatch, config: ZoomZeroConfig, num_items: Tensor | float
) -> GRPOLossOutput:
    """Policy loss of at least one group; gradients arrive in the model that `forward` calls, wrappers included.

    num_items: what "dapo" divides the sum over tokens by.
    """
    outputs: list[GRPOLossOutput] = []

    def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        output = linear_grpo_loss(
            hidden,
            head.weight,
            groups.token_ids,
            groups.advantages,
            groups.mask,
            old_logps=groups.old_logps,
            ref_logps=groups.ref_logps,
            temperature=config.temperature,
            beta=config.beta,
            clip_low=config.epsilon,
            clip_high=config.epsilon_high,
            delta=config.delta,
            sapo_temperature_pos=config.sapo_temperature_pos,
            sapo_temperature_neg=config.sapo_temperature_neg,
            loss_type=config.loss_type,
            max_completion_length=config.max_completion_length,
            num_items=num_items,
        )
        outputs.append(output)
        return output.loss

    loss = forward(groups.prompts, groups.token_ids, groups.mask, at_head)
    # The loss as it left the wrappers, so that the backward pass goes through them.
    return outputs[0]._replace(loss=loss)


def untouched_loss(forward: PackedForward, device: torch.device) -> Tensor:
    """0 through the model's own forward, with a gradient of 0 for every trained parameter.

    For a process whose share holds no group: its wrapper waits for a forward and a backward pass like the others'.
    """
    core = forward.core

    def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
        return torch.stack([parameter.flatten()[0].float() * 0 for parameter in trained]).sum()

    with HeadProbe(core.lm_head, at_head, leaves=lambda result: result):
        output = forward.model(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=device),
            position_ids=torch.zeros((3, 1, 1), dtype=torch.long, device=device),
            use_cache=False,
        )
    return cast(Tensor, output.logits)


def group_logps(forward: PackedForward, groups: GroupBatch, temperature: float) -> Tensor:
    """Log-probabilities float32 [P*G, T] of the responses; padding holds unrelated numbers."""

    def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        return cast(Tensor, linear_selective_logps(hidden, head.weight, groups.token_ids, temperature=temperature))

    return forward(groups.prompts, groups.token_ids, groups.mask, at_head)
