"""The policy loss of a batch of groups, computed through the (wrapped) model's own forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from zoomzero.looks import PreparedPrompt
from zoomzero.models.encoding import video_features
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.groups import GroupBatch
from zoomzero.training.packing import PackedForward
from zoomzero_kernels import GRPOLossOutput, linear_grpo_loss, linear_selective_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
            token_weights=groups.token_weights,
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


def untouched_loss(forward: PackedForward, prompt: PreparedPrompt) -> Tensor:
    """0 through the model's own forward, with a gradient of 0 for every trained parameter.

    For a process whose share holds no group: its wrapper waits for a forward and a backward pass like the others', and
    sharded weights for all layers of both. prompt: as `stand_in` makes it.
    """

    def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        return (hidden.float().sum() + head.weight.float().sum()) * 0

    token = torch.zeros((1, 1), dtype=torch.long, device=prompt.input_ids.device)
    return forward([prompt], token, token == 0, at_head)


def stand_in(model: PreTrainedModel, *, is_encoded: bool) -> PreparedPrompt:
    """The smallest prompt with a video, black, that a training forward takes: features (is_encoded) or pixels."""
    vision, device = model.config.vision_config, model.device
    merge = vision.spatial_merge_size
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    visual = torch.zeros((merge**2, width), device=device)
    grid = torch.tensor([[1, merge, merge]])
    if is_encoded:
        with torch.no_grad():
            (visual,) = video_features(model, [(visual, grid)])
    ids = torch.tensor([model.config.video_token_id], device=device)
    return PreparedPrompt(ids, torch.zeros((3, 1), dtype=torch.long, device=device), visual, grid, is_encoded)


def group_logps(forward: PackedForward, groups: GroupBatch, temperature: float) -> Tensor:
    """Log-probabilities float32 [P*G, T] of the responses; padding holds unrelated numbers."""

    def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        return cast(Tensor, linear_selective_logps(hidden, head.weight, groups.token_ids, temperature=temperature))

    return forward(groups.prompts, groups.token_ids, groups.mask, at_head)
