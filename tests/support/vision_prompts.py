"""Prompts of text, images and videos in any order, as each family's processor lays them out, without any weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

TEXT_TOKEN, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = 7, 11, 12, 13, 14


@dataclass(frozen=True)
class Image:
    """An image of height x width tokens."""

    height: int
    width: int


@dataclass(frozen=True)
class Video:
    """A video of frames (temporal patches) of height x width tokens, `seconds` apart."""

    frames: int
    height: int
    width: int
    seconds: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """What a processor gives, and where in it each image or video starts (for vLLM: its first placeholder)."""

    inputs: dict[str, Tensor]
    offsets: tuple[int, ...]


def config_of(model_type: str, *, tokens_per_second: int = 2) -> PretrainedConfig:
    """A config of the family with 2x2 merging and this file's token ids."""
    vision: dict[str, Any] = {"spatial_merge_size": 2}
    if model_type == "qwen2_5_vl":
        vision["tokens_per_second"] = tokens_per_second
    return AutoConfig.for_model(
        model_type,
        vision_config=vision,
        image_token_id=IMAGE_PAD,
        video_token_id=VIDEO_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def lay_out(model_type: str, parts: Sequence[int | Image | Video]) -> Prompt:
    """parts: a number stands for that many text tokens. Qwen3-VL's videos get a time label of two tokens per frame."""
    ids: list[int] = []
    offsets: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += [TEXT_TOKEN] * part
        elif isinstance(part, Image):
            offsets.append(len(ids) + 1)
            ids += [VISION_START, *[IMAGE_PAD] * (part.height * part.width), VISION_END]
        elif model_type == "qwen3_vl":
            offsets.append(len(ids))
            for _ in range(part.frames):
                pads = [VIDEO_PAD] * (part.height * part.width)
                ids += [TEXT_TOKEN, TEXT_TOKEN, VISION_START, *pads, VISION_END]
        else:
            offsets.append(len(ids) + 1)
            ids += [VISION_START, *[VIDEO_PAD] * (part.frames * part.height * part.width), VISION_END]
    row = torch.tensor([ids])
    inputs = {"input_ids": row, "mm_token_type_ids": (row == IMAGE_PAD).long() + 2 * (row == VIDEO_PAD).long()}
    images = [part for part in parts if isinstance(part, Image)]
    videos = [part for part in parts if isinstance(part, Video)]
    if images:
        inputs["image_grid_thw"] = torch.tensor([[1, 2 * part.height, 2 * part.width] for part in images])
    if videos:
        grids = [[part.frames, 2 * part.height, 2 * part.width] for part in videos]
        inputs["video_grid_thw"] = torch.tensor(grids)
        if model_type == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([part.seconds for part in videos])
    return Prompt(inputs, tuple(offsets))


def random_parts(seed: int) -> list[int | Image | Video]:
    """Up to five images and videos with text (or none) between them, seconds of any fraction."""
    rng = random.Random(seed)
    parts: list[int | Image | Video] = [rng.randint(0, 9)]
    for _ in range(rng.randint(0, 5)):
        if rng.random() < 0.4:
            parts.append(Image(rng.randint(1, 6), rng.randint(1, 6)))
        else:
            seconds = rng.choice([rng.uniform(0.05, 4.0), rng.randint(1, 40) / 10, 2 / rng.randint(1, 30)])
            parts.append(Video(rng.randint(1, 40), rng.randint(1, 5), rng.randint(1, 5), seconds))
        parts.append(rng.randint(0, 9))
    return parts
