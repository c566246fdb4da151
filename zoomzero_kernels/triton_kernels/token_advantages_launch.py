"""Launch of token_advantages.py on CUDA tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels.triton_kernels.launch import Launch
from zoomzero_kernels.triton_kernels.variants import advantage_variant


def token_advantages_launch(
    rewards: Tensor,
    segments: Tensor,
    credit: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    normalize: str,
    eps: float,
    advantages: Tensor,
) -> Launch:
    """rewards and credit float64, mask bool, all contiguous; sorts the group ids, does not wait for the device."""
    sorted_ids, order = torch.sort(group_ids, stable=True)
    ends = torch.searchsorted(sorted_ids, sorted_ids, right=True)
    table = torch.zeros((rewards.shape[0], credit.shape[1]), dtype=torch.float64, device=rewards.device)
    arguments = (
        rewards,
        credit,
        segments,
        mask.view(torch.uint8),
        order,
        sorted_ids,
        ends,
        table,
        advantages,
        mask.shape[1],
        *credit.shape,
        eps,
    )
    return Launch(advantage_variant(normalize), rewards.shape[0] if mask.numel() else 0, arguments)
