"""What a packed row asks of attention: blocks of queries over blocks of keys.

A group [prefix | branch 0 | ... | branch G-1] needs two kinds of blocks. "Own" blocks are causal: the prefix
over itself and each branch over itself. "Shared" blocks have no mask: all branches of a group over its prefix. No block
holds a pair that is computed in vain, and padding belongs to no block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from typing import NamedTuple, Protocol

from torch import Tensor


class Block(NamedTuple):
    """Neighbouring windows of one row, each attending to a window of keys of the same row.

    row: index of the packed row;
    query_start, query_length: the first window of queries;
    key_start, key_length: the first window of keys;
    num_windows: windows that follow each other without a gap, in queries and in keys.
    """

    row: int
    query_start: int
    query_length: int
    key_start: int
    key_length: int
    num_windows: int = 1

    def of_queries(self, tensor: Tensor) -> Tensor:
        """View of tensor [P, H, L, ...] at the queries: [num_windows, H, query_length, ...]."""
        return _windows(tensor, self.row, self.query_start, self.query_length, self.num_windows)

    def of_keys(self, tensor: Tensor) -> Tensor:
        """View of tensor [P, Hkv, L, ...] at the keys: [num_windows, Hkv, key_length, ...]."""
        return _windows(tensor, self.row, self.key_start, self.key_length, self.num_windows)


def _windows(tensor: Tensor, row: int, start: int, length: int, num_windows: int) -> Tensor:
    return tensor[row].narrow(1, start, num_windows * length).unflatten(1, (num_windows, length)).transpose(0, 1)


class Blocks(NamedTuple):
    """own: causal blocks, queries and keys the same places; shared: branches over their prefix, without a mask."""

    own: list[Block]
    shared: list[Block]


def blocks_of(
    prefix_lengths: Sequence[int], branch_lengths: Sequence[Sequence[int]], groups_per_row: Sequence[int]
) -> Blocks:
    """The blocks of all groups; neighbouring branches of one length share an own block.

    groups_per_row: how many groups lie one after the other in each packed row.
    """
    own: list[Block] = []
    shared: list[Block] = []
    groups = zip(prefix_lengths, branch_lengths, strict=True)
    for row, num_groups in enumerate(groups_per_row):
        place = 0
        for prefix, branches in islice(groups, num_groups):
            first = place
            for length, run in chain([(prefix, [prefix])], groupby(branches)):
                num_windows = len(list(run))
                if length:
                    own.append(Block(row, place, length, place, length, num_windows))
                place += num_windows * length
            behind = first + prefix
            if prefix and place > behind:
                shared.append(Block(row, behind, place - behind, first, prefix))
    return Blocks(own, shared)


class Kernel(Protocol):
    """Computes blocks of one kind. query [P, H, L, D], key and value [P, Hkv, L, D], H a multiple of Hkv."""

    name: str

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], causal: bool, scale: float
    ) -> Iterator[tuple[Block, Tensor, Tensor]]:
        """Yield (block, its output, the log-sum-exp of its scores), in the shape of `Block.of_queries`."""

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        blocks: Sequence[Block],
        causal: bool,
        scale: float,
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        """Yield (block, gradients of its queries, keys and values).

        out [P, H, L, D] and logsumexp [P, H, L] are those over ALL keys that a query sees, in whichever blocks: the
        gradient of a softmax over several blocks of keys is the sum of the blocks' own with these two.
        """
