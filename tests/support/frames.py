"""Frames, sizes and statistics for the tests of frame_resample."""

from typing import Any

import torch
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# mean 0 and std 1/255 leave the uint8 values as they are
RAW: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
NORMALISED: dict[str, Any] = {"mean": MEAN, "std": STD}


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Down- and upsampling, one axis each way, unchanged, odd sides, sides of a few pixels, ratio 30 and beyond.
SHAPES = [
    ((72, 128), (28, 56)),
    ((37, 53), (112, 56)),
    ((56, 84), (56, 84)),
    ((30, 200), (84, 28)),
    ((5, 7), (28, 28)),
    ((1, 1), (28, 28)),
    ((840, 843), (28, 28)),
    ((1080, 64), (28, 28)),
]


def strided_views() -> dict[str, Tensor]:
    wide = random_frames(5, 33, 64, 3)
    return {
        "channels first": random_frames(5, 3, 33, 47).permute(0, 2, 3, 1),
        "pitch": wide[:, :, :47],
        "every second frame": random_frames(10, 33, 47, 3)[::2],
        "every second pixel": random_frames(5, 66, 94, 3)[:, ::2, ::2],
        "RGBA": random_frames(5, 33, 47, 4)[..., :3],
        "BGR by flip": random_frames(5, 33, 47, 3).flip(3),
        "unaligned start": random_frames(5 * 33 * 47 * 3 + 1)[1:].view(5, 33, 47, 3),
        "expanded frame": random_frames(1, 33, 47, 3).expand(5, -1, -1, -1),
    }
