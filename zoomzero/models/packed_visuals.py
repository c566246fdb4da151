"""Images and videos of token rows: which is whose, and whether two rows show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# By kind of visual: a model's arguments for pixels and grids.
VISUAL_INPUTS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
SECONDS = "second_per_grid_ts"
TYPES = "mm_token_type_ids"


@dataclass(frozen=True, eq=False)
class Visual:
    """An image or a video of a row."""

    kind: str
    """"image" or "video"."""
    start: int
    """Place in the row of its first visual token."""
    end: int
    """Place behind its last visual token."""
    grid: Tensor
    """int64 [1, 3], in patches (time, height, width)."""
    pixels: Tensor
    """[patches, C]; rows that share a visual should share the tensor, which then need not be compared."""
    seconds: Tensor | None = None
    """[1], seconds per temporal patch, where the model wants it."""

    def same(self, other: Visual) -> bool:
        """Whether both show the same, wherever they stand."""
        if self.kind != other.kind or not torch.equal(self.grid, other.grid):
            return False
        if (self.seconds is None) != (other.seconds is None):
            return False
        if self.seconds is not None and other.seconds is not None and not torch.equal(self.seconds, other.seconds):
            return False
        return self.pixels is other.pixels or torch.equal(self.pixels, other.pixels)


def visuals_of_rows(config: Any, rows: Sequence[list[int]], inputs: Mapping[str, Any]) -> list[list[Visual]]:
    """The visuals of each row of token ids, cut out of pixels and grids that hold those of all rows in order.

    ValueError if there are more grids than the rows have visual tokens for.
    """
    found: list[list[Visual]] = [[] for _ in rows]
    for kind, (pixels_name, grid_name) in VISUAL_INPUTS.items():
        if inputs.get(grid_name) is None:
            continue
        grids, seconds = inputs[grid_name].split(1), inputs.get(SECONDS) if kind == "video" else None
        steps = [None] * len(grids) if seconds is None else list(torch.as_tensor(seconds).flatten().split(1))
        pixels = inputs[pixels_name].split([int(grid.prod()) for grid in grids])
        waiting = list(zip(grids, pixels, steps, strict=True))
        for row, ids in enumerate(rows):
            token = getattr(config, f"{kind}_token_id")
            places = [place for place, one in enumerate(ids) if one == token]
            while places and waiting:
                grid, part, step = waiting.pop(0)
                size = int(grid.prod()) // config.vision_config.spatial_merge_size**2
                mine, places = places[:size], places[size:]
                found[row].append(Visual(kind, mine[0], mine[-1] + 1, grid, part, step))
        if waiting:
            raise ValueError(
                f"shared_prefix: every {kind} needs its tokens in a row, got {len(grids)} grids and tokens for "
                f"{len(grids) - len(waiting)}; pass the rows with the visuals they were tokenized for"
            )
    return [sorted(visuals, key=lambda visual: visual.start) for visuals in found]


def rope_inputs(config: Any, row: list[int], visuals: Sequence[Visual]) -> dict[str, Any]:
    """What a vision-language model's get_rope_index takes for one row of token ids with these visuals."""
    ids = torch.tensor([row])
    types = torch.zeros_like(ids)
    inputs: dict[str, Any] = {"input_ids": ids, TYPES: types}
    for number, (kind, (_, grid)) in enumerate(VISUAL_INPUTS.items(), start=1):
        chosen = [visual for visual in visuals if visual.kind == kind]
        for visual in chosen:
            part = slice(visual.start, visual.end)
            types[0, part][ids[0, part] == getattr(config, f"{kind}_token_id")] = number
        if chosen:
            inputs[grid] = torch.cat([visual.grid.cpu() for visual in chosen])
    steps = [visual.seconds.cpu() for visual in visuals if visual.seconds is not None]
    return {**inputs, SECONDS: torch.cat(steps)} if steps else inputs
