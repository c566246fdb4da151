"""One packed row of a group, and the ways to compute its attention that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from zoomzero_kernels import shared_prefix_attention


@dataclass(frozen=True)
class Group:
    """A packed row: prefix and branch lengths in tokens, branches, heads of query and of key, head size."""

    prefix: int
    num_branches: int
    branch: int
    heads: int = 16
    key_heads: int = 16
    size: int = 64

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.prefix + self.num_branches * self.branch

    @property
    def scores(self) -> float:
        """Scores needed: pairs of a query and a key that it sees."""
        branches = self.num_branches * self.branch
        return self.prefix**2 / 2 + branches * self.prefix + branches * self.branch / 2

    @property
    def limit(self) -> float:
        """Scores of the dense mask over scores needed: no way of computing the latter can be more times faster."""
        return self.length**2 / self.scores


def make_inputs(group: Group, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """query, key and value of one row, as a model hands them over, requiring gradients."""
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    counts = (group.heads, group.key_heads, group.key_heads)
    return [
        torch.randn(1, group.length, count, group.size, **options).transpose(1, 2).requires_grad_() for count in counts
    ]


def dense_mask(group: Group, device: str = "cpu") -> Tensor:
    """bool [1, 1, L, L]: whether a place sees another; made once per step and used by every layer of a model."""
    places = torch.arange(group.length, device=device)
    return _visible(group, places[:, None], places)[None, None]


def _visible(group: Group, query: Tensor, key: Tensor) -> Tensor:
    mine, its = ((places - group.prefix).div(group.branch, rounding_mode="floor") for places in (query, key))
    return (key <= query) & ((key < group.prefix) | (mine == its))


@cache
def _block_mask(group: Group, device: str) -> BlockMask:
    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _visible(group, query, key)

    return create_block_mask(sees, None, None, group.length, group.length, device=device)


def ours(group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return shared_prefix_attention(query, key, value, [group.prefix], [[group.branch] * group.num_branches])


def dense(mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=key.shape[1] < query.shape[1])


def flex(group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _compiled_flex(
        query, key, value, block_mask=_block_mask(group, query.device.type), enable_gqa=group.key_heads < group.heads
    )


_compiled_flex = torch.compile(flex_attention)


def step(attention: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> Tensor:
    """Forward and backward; returns the gradient of the queries, whose size tells if both are right."""
    return torch.autograd.grad(attention(*inputs), inputs, grad)[0]
