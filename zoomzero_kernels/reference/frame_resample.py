"""Truth of frame_resample."""

from collections.abc import Sequence

import torch
from torch import Tensor


def frame_resample(
    frames: Tensor,
    frame_indices: Tensor | None = None,
    *,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    layout: str = "patches",
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """frames uint8 [N, H, W, 3] -> patches [ceil(n/tp)*gh*gw, 3*tp*ps*ps] or [n, 3, out_h, out_w].

    Each pass is ``clamp(floor((W @ x + 2^(p-1)) / 2^p), 0, 255)`` with W the integer weights of ``bicubic_weights``:
    exact in float64, since every product and sum is an integer below 2^53. The equivalent in torch and torchvision:

        resize(frames[frame_indices].permute(0, 3, 1, 2), size, BICUBIC, antialias=True)  on uint8, on the CPU
        ((x / 255) - mean) / std
        pad with the last frame to a multiple of tp
        view(t, tp, C, gh/m, m, ps, gw/m, m, ps).permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t*gh*gw, C*tp*ps*ps)
    """
    chosen = frames if frame_indices is None else frames[frame_indices]
    pixels = resize_uint8(chosen.permute(0, 3, 1, 2), size)
    mean_column = torch.tensor(mean, dtype=torch.float64, device=frames.device).view(3, 1, 1)
    std_column = torch.tensor(std, dtype=torch.float64, device=frames.device).view(3, 1, 1)
    normalised = ((pixels.double() / 255 - mean_column) / std_column).to(dtype)
    if layout == "tchw":
        return normalised
    return patchify(normalised, patch_size, merge_size, temporal_patch_size)


def resize_uint8(frames: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 [n, C, H, W] -> uint8 [n, C, out_h, out_w], antialiased bicubic."""
    out_h, out_w = size
    wide = _pass(frames.double(), frames.shape[3], out_w)
    tall = _pass(wide.transpose(2, 3), frames.shape[2], out_h).transpose(2, 3)
    return tall.to(torch.uint8).contiguous()


def _pass(x: Tensor, in_size: int, out_size: int) -> Tensor:
    """Resample the last axis of an integer-valued float64 tensor; result rounded and clamped to 0..255."""
    weights, precision = bicubic_weights(in_size, out_size)
    half = 2 ** (precision - 1) if precision > 0 else 0
    return ((x @ weights.to(x.device).T + half) / 2**precision).floor().clamp(0, 255)


def bicubic_weights(in_size: int, out_size: int) -> tuple[Tensor, int]:
    """Integer weights float64 [out_size, in_size] and their precision p: true weight = integer / 2^p.

    Output i lies at centre = scale * (i + 1/2), scale = in/out; weights are the cubic kernel with a = -1/2 stretched by
    max(scale, 1), cut at the image, normalised to 1, then rounded at the largest precision (at most 22) that keeps
    every one of them inside an int16. This is how Pillow and torch quantise.
    """
    scale = in_size / out_size
    stretch = max(scale, 1.0)
    support = 2 * stretch
    centre = scale * (torch.arange(out_size, dtype=torch.float64) + 0.5)
    first = (centre - support + 0.5).trunc().clamp(min=0)
    last = (centre + support + 0.5).trunc().clamp(max=in_size)
    column = torch.arange(in_size, dtype=torch.float64)
    distance = ((column - centre[:, None] + 0.5) / stretch).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where((column >= first[:, None]) & (column < last[:, None]), weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    largest = float(weights.max())
    precision = 0
    while precision < 22 and int(0.5 + largest * 2 ** (precision + 1)) < 2**15:
        precision += 1
    scaled = weights * 2**precision
    return torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).trunc(), precision


def patchify(frames: Tensor, patch_size: int, merge_size: int, temporal_patch_size: int) -> Tensor:
    """[n, C, H, W] -> [ceil(n/tp)*gh*gw, C*tp*ps*ps], rows ordered (t, gh/m, gw/m, m, m), the last frame repeated."""
    num_frames, channels, height, width = frames.shape
    ps, m, tp = patch_size, merge_size, temporal_patch_size
    missing = -num_frames % tp
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, gh, gw = frames.shape[0] // tp, height // ps, width // ps
    grid = frames.reshape(t, tp, channels, gh // m, m, ps, gw // m, m, ps)
    return grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * gh * gw, channels * tp * ps * ps)
