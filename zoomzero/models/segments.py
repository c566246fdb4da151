"""How the patches of a vision tower's run fall into segments (frames, windows), known on the host.

transformers computes the lengths on the device, and whoever needs them as numbers waits for it, in older releases in
every layer. Grids come from the processor, on the host: there the lengths follow without looking at the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """One way to cut a flat sequence of patches."""

    lengths: list[int]
    """Patches of each segment, in order."""
    runs: list[tuple[int, int]]
    """(number of segments, length), shortest first: segments of one length share a call."""
    gather: Tensor
    """int64 [S] on the device: the patches in the order of `runs`."""
    scatter: Tensor
    """int64 [S] on the device: where among those each patch is."""

    @property
    def longest(self) -> int:
        """Patches of the longest segment."""
        return max(self.lengths)

    @property
    def are_equal(self) -> bool:
        """Whether all segments have one length."""
        return len(self.runs) == 1


def segments_of(lengths: list[int], device: torch.device) -> Segments:
    """Segments of these lengths; the tables reach the device by a copy that the host does not wait for."""
    starts = [0, *accumulate(lengths)]
    order = sorted(range(len(lengths)), key=lambda segment: lengths[segment])
    runs = [(sum(each == length for each in lengths), length) for length in sorted(set(lengths))]
    gather = torch.cat([torch.arange(starts[segment], starts[segment + 1]) for segment in order])
    tables = torch.stack((gather, gather.argsort()))
    if device.type == "cuda":
        tables = tables.pin_memory().to(device, non_blocking=True)
    return Segments(lengths, runs, tables[0], tables[1])


def segments_of_run(config: Any, grids: Tensor, device: torch.device) -> dict[int, Segments]:
    """The ways to cut a run of the tower, frames and (Qwen2.5-VL) windows, by their number of segments.

    The number tells them apart without a look at the device: windows are parts of frames, so that two ways with as many
    segments are the same. config: of the vision tower; grids int64 [n, 3] (t, h, w) in patches, on the host.
    """
    sizes = grids.tolist()
    ways = [[height * width for frames, height, width in sizes for _ in range(frames)]]
    if getattr(config, "window_size", None):
        merge = config.spatial_merge_size
        side = config.window_size // merge // config.patch_size
        ways.append([length for size in sizes for length in _windows(*size, side=side, merge=merge)])
    return {len(lengths): segments_of(lengths, device) for lengths in ways}


def _windows(frames: int, height: int, width: int, *, side: int, merge: int) -> list[int]:
    """Patches of each window of side x side tokens, cut at the edges of a frame, row by row and frame by frame."""
    rows, columns = (_cut(length // merge, side) for length in (height, width))
    return [merge**2 * row * column for row in rows for column in columns] * frames


def _cut(length: int, side: int) -> Sequence[int]:
    return [min(side, length - start) for start in range(0, length, side)]
