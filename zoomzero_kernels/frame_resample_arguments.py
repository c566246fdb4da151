"""What frame_resample demands of its arguments, as far as that can be told without reading data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Sides beyond this are no video frames, and it keeps every product of the kernels' 32-bit factors inside 64 bits.
_MAX_SIDE = 65_536
_MAX_ELEMENTS = 2**62
_OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("patches", "tchw")
# Patch sides of the planar layout.
PLANES = (0, 1, 1)


def default_dtype(device: torch.device) -> torch.dtype:
    """Of the patches of frames on this device, unless told: 16 bits where a vision tower in 16 bits will read them."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def check_out(out: Tensor, dtype: torch.dtype, frames: Tensor) -> None:
    if not isinstance(out, Tensor) or out.dtype != dtype or out.device != frames.device or not out.is_contiguous():
        got = f"{out.dtype} on {out.device}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"frame_resample: out must be a contiguous tensor of {dtype} on {frames.device}, got {got}; allocate it "
            "with frames.new_empty(shape, dtype=dtype)"
        )


def check_sequence(name: str, values: Sequence[float], length: int) -> None:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or len(values) != length:
        raise ValueError(f"frame_resample: {name} must hold {length} numbers, got {values!r}; pass a tuple of {length}")


def check_frames(frames: Tensor) -> None:
    if not isinstance(frames, Tensor):
        raise TypeError(
            f"frame_resample: frames must be a torch tensor, got {type(frames).__name__}; wrap arrays in "
            "torch.from_numpy"
        )
    described = f"{str(frames.dtype).removeprefix('torch.')} {list(frames.shape)}"
    if frames.dtype != torch.uint8:
        raise TypeError(
            f"frame_resample: frames must be uint8 [N, H, W, 3], got {described}; pass the decoder's frames unchanged"
        )
    if frames.dim() != 4 or frames.shape[3] != 3:
        raise ValueError(
            f"frame_resample: frames must be uint8 [N, H, W, 3], got {described}; "
            "permute channels-first frames with frames.permute(0, 2, 3, 1), which costs no copy"
        )
    if not 1 <= frames.shape[1] <= _MAX_SIDE or not 1 <= frames.shape[2] <= _MAX_SIDE:
        raise ValueError(
            f"frame_resample: frame sides must be between 1 and {_MAX_SIDE}, got {described}; drop empty or crop "
            "huge frames"
        )
    if frames.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"frame_resample: frames must be on cpu or cuda, got {frames.device}; move them with frames.to()"
        )


def check_indices(frames: Tensor, frame_indices: Tensor | None) -> None:
    if frame_indices is None:
        return
    if not isinstance(frame_indices, Tensor) or frame_indices.dtype != torch.int64:
        got = frame_indices.dtype if isinstance(frame_indices, Tensor) else type(frame_indices).__name__
        raise TypeError(
            f"frame_resample: frame_indices must be an int64 tensor, got {got}; convert with torch.as_tensor(x).long()"
        )
    if frame_indices.dim() != 1:
        raise ValueError(
            f"frame_resample: frame_indices must be int64 [n], got shape {list(frame_indices.shape)}; flatten it"
        )
    if frames.shape[0] == 0 and frame_indices.shape[0] > 0:
        raise ValueError(
            f"frame_resample: frame_indices must be empty where there is no frame, got {frame_indices.shape[0]} of "
            "them; pass frames"
        )
    if frame_indices.device != frames.device and frame_indices.device.type != "cpu":
        raise ValueError(
            f"frame_resample: frame_indices must be on the frames' device or the CPU, got {frame_indices.device} with "
            f"frames on {frames.device}; move it with frame_indices.to(frames.device)"
        )


def check_side(name: str, value: int) -> None:
    if not 1 <= value <= 1024:
        raise ValueError(
            f"frame_resample: {name} must be between 1 and 1024, got {value}; take it from the model's processor config"
        )


def check_patches(size: Sequence[int], patches: Sequence[int]) -> None:
    """patches: sides (patch, merge, temporal patch), the first 0 for planes."""
    out_h, out_w = size
    if not 1 <= out_h <= _MAX_SIDE or not 1 <= out_w <= _MAX_SIDE:
        raise ValueError(
            f"frame_resample: size must be (out_h, out_w) between 1 and {_MAX_SIDE}, got {(out_h, out_w)}; pass pixels"
        )
    if tuple(patches) == PLANES:
        return
    for name, value in zip(("patch_size", "merge_size", "temporal_patch_size"), patches, strict=True):
        check_side(name, value)
    multiple = patches[0] * patches[1]
    if out_h % multiple != 0 or out_w % multiple != 0:
        nearest = tuple(max(1, round(side / multiple)) * multiple for side in (out_h, out_w))
        raise ValueError(
            "frame_resample: in layout 'patches' both sides must be multiples of patch_size * merge_size = "
            f"{multiple}, "
            f"got {(out_h, out_w)}; use {nearest}"
        )


def check_normalisation(statistics: Sequence[float]) -> None:
    """statistics: three means and three standard deviations."""
    mean, std = statistics[:3], statistics[3:]
    if not all(math.isfinite(value) for value in (*mean, *std)) or any(value == 0.0 for value in std):
        raise ValueError(
            f"frame_resample: mean and std must be finite and std not zero, got {tuple(mean)} and {tuple(std)}; "
            "take both from the model's processor config"
        )


def output_shape(num_frames: int, size: Sequence[int], patches: Sequence[int]) -> list[int]:
    out_h, out_w = size
    side, _, step = patches
    if tuple(patches) == PLANES:
        return [num_frames, 3, out_h, out_w]
    return [-(-num_frames // step) * (out_h // side) * (out_w // side), 3 * step * side * side]


def checked_shape(
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
    dtype: torch.dtype,
) -> list[int]:
    """Check every argument that can be checked without reading data; the shape of the output."""
    check_frames(frames)
    check_indices(frames, frame_indices)
    check_patches(size, patches)
    check_normalisation(statistics)
    if dtype not in _OUTPUT_DTYPES:
        raise TypeError(
            f"frame_resample: dtype must be one of {_OUTPUT_DTYPES}, got {dtype}; convert the result instead"
        )
    num_frames = frames.shape[0] if frame_indices is None else frame_indices.shape[0]
    shape = output_shape(num_frames, size, patches)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"frame_resample: the output {shape} is too large to address; take fewer or smaller frames")
    return shape


def check_shape_of(out: Tensor, shape: list[int]) -> None:
    if list(out.shape) != shape:
        raise ValueError(f"frame_resample: out must be {shape}, got {list(out.shape)}; take a slice of that shape")
