"""M-RoPE positions as the published models were trained with, whatever transformers is installed.

A prompt is text and vision blocks in turn. Text counts on along all three axes (time, height, width); a block of
t x h x w visual tokens starts at the next position and spreads out from there along each axis. Whatever follows a block
starts one beyond the LARGEST position used so far, over all three axes: a video's last temporal position usually.
transformers 5.3 to 5.24 start it at block start + max(h, w) instead, inside the video's own time range
(https://github.com/huggingface/transformers/issues/45381).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from zoomzero.models.base import Family
from zoomzero.models.families import family_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# mm_token_type_ids as transformers' processors give them.
TEXT, IMAGE, VIDEO = 0, 1, 2


class _Block(NamedTuple):
    """A vision block: its kind (IMAGE or VIDEO), its temporal positions from 0, its height and width in tokens."""

    kind: int
    times: Tensor
    height: int
    width: int


def mrope_positions(config: PretrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """Positions of one prompt, as Qwen2-VL, Qwen2.5-VL and Qwen3-VL were trained with them.

    Args:
        config: the checkpoint's.
        inputs: one prompt as a processor gives it: input_ids and mm_token_type_ids int64 [1, L] (1 marks image tokens,
            2 video tokens); with images image_grid_thw int64 [n, 3], with videos video_grid_thw int64 [n, 3] (in
            patches) and, for Qwen2.5-VL, second_per_grid_ts [n] (1 second where it is missing).

    Returns:
        Positions int64 [3, L] (time, height, width), on the device of input_ids, and the position of the first token
        after the prompt.

    Raises:
        ValueError: the config is of another family, or grids and visual tokens do not fit each other.
    """
    family = family_of(config)
    ids = inputs["input_ids"]
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise ValueError(f"mrope_positions: input_ids must be of one prompt [1, L], got {list(ids.shape)}; pass one")
    kinds = inputs["mm_token_type_ids"][0].tolist()
    if len(kinds) != ids.shape[1]:
        raise ValueError(
            f"mrope_positions: mm_token_type_ids must be as long as input_ids, got {len(kinds)} for {ids.shape[1]}; "
            "pass both as the processor gave them"
        )
    waiting = {IMAGE: _image_blocks(config, inputs), VIDEO: _video_blocks(config, family, inputs)}
    parts: list[Tensor] = []
    place = following = 0
    while place < len(kinds):
        part = _text(kinds, place) if kinds[place] == TEXT else _vision(kinds, place, waiting)
        parts.append(part + following)
        place += part.shape[1]
        following = int(parts[-1].max()) + 1
    for kind, name in ((IMAGE, "image"), (VIDEO, "video")):
        if waiting[kind]:
            raise ValueError(
                f"mrope_positions: every {name} grid needs its tokens in the prompt, got {len(waiting[kind])} "
                f"{name} blocks without any; pass the grids of this prompt alone"
            )
    positions = torch.cat(parts, dim=1) if parts else torch.zeros(3, 0, dtype=torch.long)
    return positions.to(ids.device), following


def _text(kinds: list[int], place: int) -> Tensor:
    """Positions from 0 of the text that starts at `place`, int64 [3, n]."""
    end = place
    while end < len(kinds) and kinds[end] == TEXT:
        end += 1
    return torch.arange(end - place).expand(3, -1)


def _vision(kinds: list[int], place: int, waiting: dict[int, list[_Block]]) -> Tensor:
    """Positions from 0 of the vision block that starts at `place`, int64 [3, t*h*w]; takes it out of `waiting`."""
    kind = kinds[place]
    if not waiting.get(kind):
        raise ValueError(
            f"mrope_positions: every visual token needs a grid, got a token of type {kind} at place {place} with no "
            "grid left for it; pass the grids of all images and videos in the prompt"
        )
    block = waiting[kind].pop(0)
    size = len(block.times) * block.height * block.width
    found = kinds[place : place + size].count(kind)
    if found != size:
        raise ValueError(
            f"mrope_positions: the block at place {place} must hold {size} visual tokens as its grid says, got "
            f"{found} of type {kind}; pass each prompt with the grids it was tokenized for"
        )
    height, width = torch.arange(block.height), torch.arange(block.width)
    return torch.stack(torch.meshgrid(block.times, height, width, indexing="ij")).flatten(1)


def _image_blocks(config: PretrainedConfig, inputs: Mapping[str, Tensor]) -> list[_Block]:
    merge = config.vision_config.spatial_merge_size
    return [_Block(IMAGE, torch.arange(t), h // merge, w // merge) for t, h, w in _grids(inputs, "image_grid_thw")]


def _video_blocks(config: PretrainedConfig, family: Family, inputs: Mapping[str, Tensor]) -> list[_Block]:
    merge = config.vision_config.spatial_merge_size
    grids = _grids(inputs, "video_grid_thw")
    seconds = inputs.get("second_per_grid_ts") if family.seconds_in_positions else None
    steps = [1.0] * len(grids)
    if seconds is not None:
        steps = torch.as_tensor(seconds).double().flatten().tolist()
        if len(steps) != len(grids):
            raise ValueError(
                f"mrope_positions: second_per_grid_ts must have one value per video, got {len(steps)} for "
                f"{len(grids)} videos; pass the processor's output unchanged"
            )
        for step in steps:
            if not 0 <= step < math.inf:
                raise ValueError(
                    f"mrope_positions: second_per_grid_ts must be finite and not negative, got {step}; pass the "
                    "seconds from one temporal patch to the next"
                )
    blocks: list[_Block] = []
    for (t, h, w), step in zip(grids, steps, strict=True):
        if family.times_in_prompt:
            blocks += [_Block(VIDEO, torch.zeros(1, dtype=torch.long), h // merge, w // merge)] * t
            continue
        factor = step * config.vision_config.tokens_per_second if family.seconds_in_positions else 1.0
        # One floor of the product. In double precision the product of a float32 and two whole numbers is exact.
        times = (torch.arange(t).double() * factor).long()
        blocks.append(_Block(VIDEO, times, h // merge, w // merge))
    return blocks


def _grids(inputs: Mapping[str, Tensor], name: str) -> list[list[int]]:
    grids = inputs.get(name)
    return [] if grids is None else grids.tolist()
