"""Instructions per element in the main loops of every kernel, beside what an H100 issues while it moves the bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from machine_code import Loop, innermost

from zoomzero_kernels import _C

# An H100: 132 processors that issue 4 x 32 lane-instructions a cycle at 1.755 GHz, while a copy moves 3.0 TB/s.
LANE_INSTRUCTIONS_PER_SECOND = 132 * 128 * 1.755e9
BYTES_PER_SECOND = 3.0e12
# What a test holds on sm_90, by kernel, part and bytes of an element: below it a kernel waits for memory, not for
# the issue of instructions; what the horizontal pass of frame_resample may take was found, not derived.
BUDGETS = {
    ("frame_resample", "vertical", 2): 60.0,
    ("frame_resample", "vertical", 4): 60.0,
    ("frame_resample", "horizontal", 2): 32.0,
    ("frame_resample", "horizontal", 4): 32.0,
    ("token_resample", "all", 2): 60.0,
    ("token_resample", "all", 4): 95.0,
    ("policy_rows_kernel", "all", 2): 20.0,
    ("policy_rows_kernel", "all", 4): 20.0,
}
# The case that frame_resample is counted for: 32 frames of 1280x720 to 4096 tokens.
SOURCE, SIZE = (720, 1280), (336, 588)
GROUP = 4  # source rows, taps and columns that frame_resample takes at once


@dataclass(frozen=True)
class Count:
    """Instructions per element of one part of a kernel; bytes_per_element: that must move for it, if it moves any."""

    part: str
    element: str
    element_bytes: int
    instructions: float
    bytes_per_element: float | None

    @property
    def issue_budget(self) -> float | None:
        """Instructions per element that an H100 issues while it moves the element's bytes."""
        if self.bytes_per_element is None:
            return None
        return LANE_INSTRUCTIONS_PER_SECOND * self.bytes_per_element / BYTES_PER_SECOND


def _mean_groups(in_size: int, out_size: int, *, from_multiple: bool) -> float:
    """Groups of GROUP inputs that an output of an axis takes, on average; from a multiple of it on, or its first."""
    starts, sizes, *_ = _C.bicubic_axis(in_size, out_size, 1)
    taken = zip(memoryview(starts).cast("i"), memoryview(sizes).cast("i"), strict=True)
    return statistics.mean(
        -(-(start + size) // GROUP) - start // GROUP if from_multiple else -(-size // GROUP) for start, size in taken
    )


def _only(loops: list[Loop], what: str) -> Loop:
    if len(loops) != 1:
        raise ValueError(f"instruction counts: one loop must be the {what}, got {len(loops)}; see the disassembly")
    return loops[0]


def frame_resample_counts(loops: list[Loop], element_bytes: int) -> list[Count]:
    """Of the vertical pass and its stores, by output value; of the horizontal one, by resized value of a source row.

    Loops around a pass count as if they turned once for each of its vectors, so that this is an upper bound.
    """
    vertical = _only(innermost(loops, uses="IDP", without="PRMT"), "vertical pass")
    horizontal = _only(innermost(loops, uses="PRMT"), "horizontal pass")
    stores = _only(innermost(loops, uses=f"STG.E.{GROUP * element_bytes * 8}"), "store of vectors")
    groups = _mean_groups(SOURCE[0], SIZE[0], from_multiple=True)
    vector = vertical.ancestor(2).size + (groups - 1) * vertical.size + stores.ancestor(2).size
    groups = _mean_groups(SOURCE[1], SIZE[1], from_multiple=False)
    pixels = horizontal.parent.size + (groups - 1) * horizontal.size if horizontal.parent else 0
    values = SIZE[0] * SIZE[1] * 3
    moved = (SOURCE[0] * SOURCE[1] * 3 + values * element_bytes) / values
    return [
        Count("vertical", "output value", element_bytes, vector / GROUP, moved),
        Count("horizontal", "value of a source row", element_bytes, pixels / (GROUP * 3), None),
    ]


def token_resample_counts(loops: list[Loop], element_bytes: int) -> list[Count]:
    """Of the whole loop over tokens by output channel, where a token covers at most four others (ratio 2)."""
    inner = max(innermost(loops, uses="LDG"), key=lambda loop: loop.size)
    channels = 16 // element_bytes if inner.uses("LDG.E.128") else 1
    return [Count("all", "output channel", element_bytes, inner.ancestor(2).size / channels, 5 * element_bytes)]


def row_counts(loops: list[Loop], element_bytes: int, logits_per_turn: int, *, passes: Callable[[int], int]) -> Count:
    """Of the loop that reads a row and the one that writes its gradient, by logit.

    The gradient's loop with a term of the entropy stands beside the one without, and is not counted. passes: how often
    a logit moves, by its bytes.
    """
    writing = innermost(loops, uses="STG")
    total = sum(loop.size for loop in innermost(loops, uses="LDG", without="STG"))
    total += min((loop.size for loop in writing if loop.uses("LDG")), default=0)
    return Count("all", "logit", element_bytes, total / logits_per_turn, passes(element_bytes) * element_bytes)


# How often a logit must move: the second read of 16-bit rows comes from the L2 cache, that of float32 rows does not.
ROW_PASSES: dict[str, Callable[[int], int]] = {
    "policy_rows_kernel": lambda element_bytes: 2 if element_bytes == 2 else 3,
    "logp_rows_kernel": lambda element_bytes: 1,
    "logp_rows_backward_kernel": lambda element_bytes: 2,
    "scale_rows_kernel": lambda element_bytes: 2,
}
