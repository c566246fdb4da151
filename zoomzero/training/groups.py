"""Whole groups of rollouts, the unit that generation makes, that micro-batches slice and that a packed row holds."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoomzero.looks import PreparedPrompt
from zoomzero.rollouts import Rollouts


@dataclass(frozen=True)
class GroupBatch:
    """P prompts and their P * G responses, the G of a prompt next to each other."""

    prompts: list[PreparedPrompt]
    """P prompts; with pixels where the vision tower is trained."""
    token_ids: Tensor
    """int64 [P*G, T], padded."""
    mask: Tensor
    """bool [P*G, T]: the tokens that the loss takes."""
    advantages: Tensor
    """float32 [P*G, T]."""
    old_logps: Tensor | None
    """float32 [P*G, T] of the policy that generated; None on policy."""
    ref_logps: Tensor | None
    """float32 [P*G, T] of the frozen start model; None without a KL term."""
    token_weights: Tensor | None
    """float32 [P*G, T]: importance weights of a sampler that is not quite the policy; None where it is."""
    num_items: int
    """Valid tokens of the whole generation batch, whichever slice of it this is."""
    segments: Tensor | None = None
    """uint8 [P*G, T], on the CPU: which part of its response a token belongs to; see `zoomzero.responses`."""

    @staticmethod
    def empty(device: torch.device) -> "GroupBatch":
        """A batch without groups: all of its videos were unreadable."""
        nothing = torch.zeros((0, 0), device=device)
        return GroupBatch([], nothing.long(), nothing.bool(), nothing, None, None, None, num_items=0)

    def split(self, num_parts: int) -> list["GroupBatch"]:
        """Parts of whole groups, equal up to one group: skipped groups may have left a number that does not divide."""
        size, larger = divmod(len(self.prompts), num_parts)
        edges = [part * size + min(part, larger) for part in range(num_parts + 1)]
        return [self.part(range(start, end)) for start, end in itertools.pairwise(edges)]

    def part(self, places: range) -> "GroupBatch":
        """Some neighbouring groups."""
        group_size = len(self.token_ids) // max(1, len(self.prompts))
        start, end = places.start * group_size, places.stop * group_size
        return GroupBatch(
            prompts=self.prompts[places.start : places.stop],
            num_items=self.num_items,
            **{name: _rows(getattr(self, name), start, end) for name in _TENSORS},
        )


_TENSORS = ("token_ids", "mask", "advantages", "old_logps", "ref_logps", "token_weights", "segments")


def _rows(tensor: Tensor | None, start: int, end: int) -> Any:
    return None if tensor is None else tensor[start:end]


def group_rows(rows: Sequence[Mapping[str, Any]], num_generations: int) -> list[Mapping[str, Any]]:
    """One row a group from the sampler's batch, which repeats each row `num_generations` times in a run.

    ValueError if it does not: a group would mix questions.
    """
    groups = [rows[start : start + num_generations] for start in range(0, len(rows), num_generations)]
    for group in groups:
        if len(group) != num_generations or any(row != group[0] for row in group):
            raise ValueError(
                f"ZoomZeroTrainer: a batch must repeat each row {num_generations} times in a run, got {len(rows)} rows "
                "that do not; make the batch sizes multiples of num_generations and keep TRL's own sampler"
            )
    return [group[0] for group in groups]


def join_rollouts(parts: Sequence[Rollouts], pad_token_id: int) -> Rollouts:
    """Rollouts of several generation calls as one, padded to the longest."""
    length = max(part.token_ids.shape[1] for part in parts)

    def joined(name: str, fill: float) -> Tensor:
        padded = [
            torch.nn.functional.pad(values, (0, length - values.shape[1]), value=fill)
            for values in (getattr(part, name) for part in parts)
        ]
        return torch.cat(padded)

    return Rollouts(
        token_ids=joined("token_ids", pad_token_id),
        mask=joined("mask", False),
        logps=joined("logps", 0.0),
        stopped=torch.cat([part.stopped for part in parts]),
    )
