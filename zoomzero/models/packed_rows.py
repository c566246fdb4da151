"""Finding the common prefixes of token rows, and laying the rows out as packed rows.

Note [Common prefixes]
Rows come in any order and any mixture of groups. Sorted by their tokens, rows with a long common prefix are neighbours,
and what a run of neighbours has in common is the least that two neighbours in it have in common. The runs that save
most tokens are found by dynamic programming over the sorted rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero.models.packed_attention import PackedLengths
from zoomzero.models.packed_visuals import Visual


@dataclass(frozen=True, eq=False)
class Row:
    """The tokens of one row, without padding."""

    ids: list[int]
    """Token ids."""
    visuals: list[Visual] = field(default_factory=list)
    """What its visual placeholders stand for, in order."""


class Group(NamedTuple):
    """Rows that are computed as one packed row.

    rows: their indices; prefix: how many first tokens they share.
    """

    rows: list[int]
    prefix: int


def find_groups(rows: Sequence[Row]) -> list[Group]:
    """Runs of sorted rows that leave the fewest tokens to compute. See Note [Common prefixes]."""
    keys = _keys(rows)
    order = sorted(range(len(rows)), key=keys.__getitem__)
    shared = [
        _common_prefix(keys[first], keys[second], rows[first].visuals) for first, second in itertools.pairwise(order)
    ]
    # best[n]: most tokens saved among the first n sorted rows, and where its last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        common = len(rows[order[end - 1]].ids)
        choices = []
        for start in range(end - 1, -1, -1):
            if start < end - 1:
                common = min(common, shared[start])
            choices.append((best[start][0] + common * (end - 1 - start), start))
            if common == 0:
                break
        best.append(max(choices))
    groups: list[Group] = []
    end = len(order)
    while end:
        start = best[end][1]
        members = sorted(order[start:end])
        common = min([*shared[start : end - 1], *(len(rows[index].ids) for index in members)])
        groups.append(Group(members, common))
        end = start
    return sorted(groups)


def _keys(rows: Sequence[Row]) -> list[list[int]]:
    """The rows' token ids, with what a visual shows, as a negative number, in the place of its first placeholder."""
    distinct: list[Visual] = []
    keys = [list(row.ids) for row in rows]
    for row, key in zip(rows, keys, strict=True):
        for visual in row.visuals:
            number = next((n for n, known in enumerate(distinct) if visual.same(known)), len(distinct))
            if number == len(distinct):
                distinct.append(visual)
            key[visual.start] = -1 - number
    return keys


def _common_prefix(first: list[int], second: list[int], visuals: Sequence[Visual]) -> int:
    """How many first numbers two rows share, never ending inside one of the first row's visuals."""
    length = _equal_numbers(first, second)
    return next((visual.start for visual in visuals if visual.start < length < visual.end), length)


def _equal_numbers(first: list[int], second: list[int]) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:  # comparing slices runs in C: bisection beats a loop over tokens
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Layout:
    """One packed row that holds all rows once: group after group, without padding."""

    groups: list[Group]
    """In the order in which they lie."""
    lengths: PackedLengths
    """Of the groups."""
    places: list[Tensor]
    """Per row int64 [n]: the places of its tokens in the packed row."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(prefix + sum(branches) for prefix, branches in zip(*self.lengths, strict=True))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(row, first token that is laid out) for every row, in the order in which they lie."""
        for group in self.groups:
            for number, row in enumerate(group.rows):
                yield row, 0 if number == 0 else group.prefix


def lay_out(rows: Sequence[Row], groups: list[Group]) -> Layout:
    """Each group as [prefix | rest of its first row | rest of its second | ...]."""
    branches = [[len(rows[row].ids) - group.prefix for row in group.rows] for group in groups]
    places = [torch.empty(0, dtype=torch.long)] * len(rows)
    start = 0
    for group, lengths in zip(groups, branches, strict=True):
        prefix = torch.arange(start, start + group.prefix)
        start += group.prefix
        for row, length in zip(group.rows, lengths, strict=True):
            places[row] = torch.cat((prefix, torch.arange(start, start + length)))
            start += length
    return Layout(groups, PackedLengths([group.prefix for group in groups], branches), places)


def packed_tokens(layout: Layout, values: Sequence[Tensor]) -> Tensor:
    """Values [n] or [A, n] per row, such as token ids or positions, in their places: [1, N] or [A, 1, N]."""
    return torch.cat([values[row][..., first:] for row, first in layout.pieces()], dim=-1).unsqueeze(-2)


def packed_positions(layout: Layout, positions: Sequence[Tensor]) -> Tensor:
    """Positions int64 [A, 1, N] of the packed row from those of the rows, [A, n] each, A axes.

    Rows of a group may count from different numbers (left padding counts in some models): all are moved to where their
    group's first row begins.
    """
    moved = list(positions)
    for group in layout.groups:
        for row in group.rows:
            moved[row] = positions[row] + (positions[group.rows[0]][:, :1] - positions[row][:, :1])
    return packed_tokens(layout, moved)


def packed_visuals(layout: Layout, rows: Sequence[Row]) -> list[Visual]:
    """The visuals of the packed row in order: those of a prefix once, then those of each branch."""
    return [visual for row, first in layout.pieces() for visual in rows[row].visuals if visual.start >= first]
