"""Frames to patches and visual tokens to fewer, beside eager torch, torch.compile, torchvision and transformers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoomzero.bench.case import Case, Place, dtype_name, rival
from zoomzero_kernels import frame_resample, token_resample

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Size = tuple[int, int]


def _pooling_loop(tokens: Tensor, height: int, width: int, target: Size) -> Tensor:
    """What one writes without a kernel: every slice as an image of D channels."""
    images = tokens.view(-1, height, width, tokens.shape[1]).permute(0, 3, 1, 2)
    return torch.nn.functional.adaptive_avg_pool2d(images, target).permute(0, 2, 3, 1).reshape(-1, tokens.shape[1])


def token_resample_cases(place: Place) -> Iterator[Case]:
    """Halving the sides of grids of visual tokens, and its backward pass."""
    slices, height, width, dim = place.pick(tiny=(2, 4, 6, 64), cpu=(16, 26, 46, 1024), gpu=(128, 26, 46, 3584))
    half = (height // 2, width // 2)
    for dtype in (torch.bfloat16, torch.float32):
        tokens = place.randn(slices * height * width, dim, dtype=dtype).requires_grad_()
        grids = torch.tensor([[slices, height, width]]), torch.tensor([half] * slices)
        out = token_resample(tokens, *grids)
        grad = torch.randn_like(out)
        size = f"{slices} x {height}x{width} to {half[0]}x{half[1]}, D {dim} {dtype_name(dtype)}"
        moved = tokens.nbytes + grad.nbytes
        values = tokens.detach()
        loop = partial(_pooling_loop, height=height, width=width, target=half)
        ours = partial(token_resample, grid_thw=grids[0], target_hw=grids[1])
        ways: dict[str, Callable[..., Tensor]] = {"ours": ours, "eager": loop}
        tolerance = 1e-4 if dtype is torch.float32 else 0.03
        yield Case(
            "token_resample",
            size,
            {name: partial(way, values) for name, way in (ways | place.compiled(loop)).items()},
            moved_bytes=moved,
            tolerance=tolerance,
            bar=0.7,
            synchronisations=0,
        )
        results = {"ours": out, "eager": loop(tokens)}
        yield Case(
            "token_resample, backward",
            size,
            {name: partial(_gradient, result, tokens, grad) for name, result in results.items()},
            moved_bytes=moved,
            tolerance=tolerance,
            bar=0.7,
            synchronisations=0,
        )


def _gradient(result: Tensor, leaf: Tensor, grad: Tensor) -> Tensor:
    return torch.autograd.grad(result, leaf, grad, retain_graph=True)[0]


def _patches(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels [n, 3, h, w] of 0 to 255, normalised and cut into patches of 14x14 in 2 frames."""
    scale = 1 / (255 * torch.tensor(STD, device=pixels.device).view(3, 1, 1))
    shift = (torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1).to(pixels.device)
    n, _, h, w = pixels.shape
    grid = (pixels * scale - shift).view(n // 2, 2, 3, h // 28, 2, 14, w // 28, 2, 14)
    return grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(n // 2 * h * w // 196, 3 * 392).to(dtype)


def _eager(frames: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    """The shortest torch on a GPU: the resize is in float32, so not the CPU's numbers."""
    pixels = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), size, mode="bicubic", antialias=True, align_corners=False
    )
    return _patches(pixels.round().clamp(0, 255), dtype)


def _processors() -> dict[str, Callable[..., Tensor]]:
    """torchvision's resize with the rest in torch, and transformers' processor, where they are installed."""
    found: dict[str, Callable[..., Tensor]] = {}
    functional, transformers = rival("torchvision.transforms.v2.functional"), rival("transformers")
    if functional is not None:
        found["torchvision, then torch"] = partial(_torchvision, functional)
    if functional is not None and transformers is not None:
        found["transformers processor"] = partial(_processor, transformers.Qwen2VLVideoProcessor)
    return found


def _torchvision(functional: Any, frames: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    mode = functional.InterpolationMode.BICUBIC
    pixels = functional.resize(frames.permute(0, 3, 1, 2), list(size), interpolation=mode, antialias=True)
    return _patches(pixels.float(), dtype)


def _processor(make: Any, frames: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    output = _made(make, size)(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt", do_resize=True)
    return output["pixel_values_videos"].to(dtype)


@functools.cache
def _made(make: Any, size: Size) -> Any:
    # Rounding keeps the sides just inside a limit a little above the wanted area.
    limits = {"shortest_edge": 28 * 28, "longest_edge": size[0] * size[1] * 51 // 50}
    return make(size=limits, image_mean=MEAN, image_std=STD, do_sample_frames=False, cap_pixels_per_frame=False)


def frame_resample_cases(place: Place) -> Iterator[Case]:
    """Decoded frames to the patches of Qwen's processors."""
    num_frames, height, width = place.pick(tiny=(2, 60, 90), cpu=(8, 720, 1280), gpu=(32, 720, 1280))
    frames = torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, device=place.device)
    sizes = place.pick(tiny=((28, 56),), cpu=((336, 588),), gpu=((336, 588), (672, 1176)))
    for size, dtype in itertools.product(sizes, (torch.bfloat16, torch.float32)):
        # The processor chooses other sizes for frames as small as the tiny ones.
        installed = {} if place.scale == "tiny" else _processors()
        others = {"eager": _eager, **place.compiled(_eager), **installed}
        ways = {name: partial(way, frames, size, dtype) for name, way in others.items()}
        yield Case(
            "frame_resample",
            f"{num_frames} x {width}x{height} to {size[1]}x{size[0]} {dtype_name(dtype)}",
            {"ours": partial(frame_resample, frames, size=size, mean=MEAN, std=STD, dtype=dtype), **ways},
            moved_bytes=frames.nbytes + num_frames * 3 * size[0] * size[1] * dtype.itemsize,
            # A grey level or two: resizing in float32 rounds otherwise than resizing bytes.
            tolerance=0.05,
            bar=0.5,
            synchronisations=0,
        )
