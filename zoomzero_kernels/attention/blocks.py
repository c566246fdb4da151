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


def flat_layout(
    prefix_lengths: Sequence[int], branch_lengths: Sequence[Sequence[int]], groups_per_row: Sequence[int]
) -> list[int]:
    """The groups of all rows as one list of numbers, which an op's schema can take.

    For each row its number of groups, and for each group its prefix length, its number of branches, and their lengths.
    """
    layout: list[int] = []
    groups = zip(prefix_lengths, branch_lengths, strict=True)
    for num_groups in groups_per_row:
        layout.append(num_groups)
        for prefix, branches in islice(groups, num_groups):
            layout += [prefix, len(branches), *branches]
    return layout


def blocks_of(layout: Sequence[int]) -> Blocks:
    """The blocks of all groups of a `flat_layout`; neighbouring branches of one length share an own block."""
    own: list[Block] = []
    shared: list[Block] = []
    numbers = iter(layout)
    for row, num_groups in enumerate(numbers):
        place = 0
        for _ in range(num_groups):
            first, prefix, num_branches = place, next(numbers), next(numbers)
            for length, run in chain([(prefix, [prefix])], groupby(islice(numbers, num_branches))):
                num_windows = len(list(run))
                if length:
                    own.append(Block(row, place, length, place, length, num_windows))
                place += num_windows * length
            behind = first + prefix
            if prefix and place > behind:
                shared.append(Block(row, behind, place - behind, first, prefix))
    return Blocks(own, shared)


class Inputs(NamedTuple):
    """query [P, H, L, D]; key and value [P, Hkv, L, D], H a multiple of Hkv; scale: factor of the scores."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float

    def of(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Views of a block's queries, keys and values."""
        return block.of_queries(self.query), block.of_keys(self.key), block.of_keys(self.value)


class Results(NamedTuple):
    """What a backward pass is given: out [P, H, L, D], its gradient, and the log-sum-exp [P, H, L] of the scores.

    Those of a query are over ALL keys that it sees, in whichever blocks: the gradient of a softmax over several blocks
    of keys is the sum of the blocks' own with these.
    """

    grad: Tensor
    out: Tensor
    logsumexp: Tensor

    def of(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Views of a block's queries in all three."""
        return block.of_queries(self.grad), block.of_queries(self.out), block.of_queries(self.logsumexp)


class Kernel(Protocol):
    """Computes blocks of one kind, with or without a causal mask."""

    name: str

    def forward(self, inputs: Inputs, blocks: Sequence[Block], causal: bool) -> Iterator[tuple[Block, Tensor, Tensor]]:
        """Yield (block, its output, the log-sum-exp of its scores), in the shape of `Block.of_queries`."""

    def backward(
        self, inputs: Inputs, results: Results, blocks: Sequence[Block], causal: bool
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        """Yield (block, gradients of its queries, keys and values)."""
