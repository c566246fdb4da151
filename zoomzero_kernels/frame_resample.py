"""Video frames to model inputs in one pass: gather, antialiased bicubic resize, normalise, patch order."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels import _C, native
from zoomzero_kernels.arrays import takes_arrays
from zoomzero_kernels.checks import require_cuda_build, values_are_checked

# Sides beyond this are no video frames, and it keeps every product of the kernels' 32-bit factors inside 64 bits.
_MAX_SIDE = 65_536
_MAX_ELEMENTS = 2**62
_OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LAYOUTS = ("patches", "tchw")


@takes_arrays
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
    """Resize, normalise and lay out video frames for a vision-language model, without a full-size intermediate.

    The resize is the antialiased bicubic (a = -1/2) of Pillow and of torchvision's CPU uint8 path, to the last bit:
    horizontal pass, then vertical pass, fixed-point weights, each pass rounded and clamped to uint8. Then
    ``(x / 255 - mean) / std`` as one fused multiply-add. CPU and CUDA give the same numbers.

    Args:
        frames: uint8 [N, H, W, 3], any strides, CPU or CUDA.
        frame_indices: int64 [n], the frames to take, in any order, repeats allowed; None takes all N. For CUDA frames
            it may lie on the CPU (checked, then copied) or on the frames' device, where an index out of range gives a
            frame of NaN, or an error if ZOOMZERO_CHECK_VALUES=1 (a check waits for the GPU).
        size: ``(out_h, out_w)``; in layout "patches" each side is a multiple of ``patch_size * merge_size``.
        mean: three channel means, in units of [0, 1].
        std: three channel standard deviations, not zero.
        layout: "patches" gives the ``pixel_values_videos`` rows of the Qwen2-VL, 2.5-VL and 3-VL processors,
            [ceil(n/tp) * (out_h/ps) * (out_w/ps), 3*tp*ps*ps], the last frame repeated to fill the last temporal patch;
            "tchw" gives [n, 3, out_h, out_w].
        patch_size: ps, pixels a patch side.
        merge_size: patches a side that the model merges into one token; decides the order of the rows.
        temporal_patch_size: tp, frames a patch.
        dtype: torch.float32, torch.bfloat16 or torch.float16.

    Returns:
        The normalised frames in the layout asked for, contiguous, on the frames' device. Not differentiable.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, size, index, layout or device outside what is described above.

    On CUDA the op runs on the current stream and allocates its output, and a copy of ``frame_indices`` that lie on the
    CPU. It waits for the device in one case only: the weight tables of a shape are copied there on its first use and
    kept. So call once before capturing a CUDA graph, and capture with ``frame_indices`` on the device.
    """
    # What the dispatcher would reject with a message about schemas; the op itself checks the rest.
    _check_frames(frames)
    _check_indices(frames, frame_indices)
    _check_sequence("size", size, 2)
    _check_sequence("mean", mean, 3)
    _check_sequence("std", std, 3)
    for name, value in (
        ("size", size[0]),
        ("size", size[1]),
        ("patch_size", patch_size),
        ("merge_size", merge_size),
        ("temporal_patch_size", temporal_patch_size),
    ):
        if not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"frame_resample: {name} must be of integers, got {value!r}; round it first")
    if not isinstance(layout, str) or not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"frame_resample: layout must be a string and dtype a torch.dtype, got {layout!r} and {dtype!r}; pass "
            "layout='patches' or 'tchw' and dtype=torch.float32, for instance"
        )
    return torch.ops.zoomzero.frame_resample(
        frames,
        frame_indices,
        list(size),
        list(mean),
        list(std),
        layout,
        patch_size,
        merge_size,
        temporal_patch_size,
        dtype,
    )


def _check_sequence(name: str, values: Sequence[float], length: int) -> None:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or len(values) != length:
        raise ValueError(f"frame_resample: {name} must hold {length} numbers, got {values!r}; pass a tuple of {length}")


def _check_frames(frames: Tensor) -> None:
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


def _check_indices(frames: Tensor, frame_indices: Tensor | None) -> None:
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


def _check_layout(size: Sequence[int], layout: str, patch_size: int, merge_size: int, temporal_patch_size: int) -> None:
    if layout not in _LAYOUTS:
        raise ValueError(f"frame_resample: layout must be one of {_LAYOUTS}, got {layout!r}; choose one of them")
    out_h, out_w = size
    if not 1 <= out_h <= _MAX_SIDE or not 1 <= out_w <= _MAX_SIDE:
        raise ValueError(
            f"frame_resample: size must be (out_h, out_w) between 1 and {_MAX_SIDE}, got {(out_h, out_w)}; pass pixels"
        )
    if layout == "tchw":
        return
    for name, value in (
        ("patch_size", patch_size),
        ("merge_size", merge_size),
        ("temporal_patch_size", temporal_patch_size),
    ):
        if not 1 <= value <= 1024:
            raise ValueError(
                f"frame_resample: {name} must be between 1 and 1024, got {value}; take it from the model's "
                "processor config"
            )
    multiple = patch_size * merge_size
    if out_h % multiple != 0 or out_w % multiple != 0:
        nearest = tuple(max(1, round(side / multiple)) * multiple for side in (out_h, out_w))
        raise ValueError(
            "frame_resample: in layout 'patches' both sides must be multiples of patch_size * merge_size = "
            f"{multiple}, "
            f"got {(out_h, out_w)}; use {nearest}"
        )


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(
            f"frame_resample: mean and std must hold 3 numbers each, got {len(mean)} and {len(std)}; one a colour "
            "channel"
        )
    if not all(math.isfinite(value) for value in (*mean, *std)) or any(value == 0.0 for value in std):
        raise ValueError(
            f"frame_resample: mean and std must be finite and std not zero, got {tuple(mean)} and {tuple(std)}; "
            "take both from the model's processor config"
        )


def _output_shape(
    num_frames: int, size: Sequence[int], layout: str, patch_size: int, merge_size: int, temporal_patch_size: int
) -> list[int]:
    out_h, out_w = size
    if layout == "tchw":
        return [num_frames, 3, out_h, out_w]
    num_slices = -(-num_frames // temporal_patch_size)
    rows = num_slices * (out_h // patch_size) * (out_w // patch_size)
    return [rows, 3 * temporal_patch_size * patch_size * patch_size]


def _checked_output(
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    layout: str,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Check every argument that can be checked without reading data, and allocate the output."""
    _check_frames(frames)
    _check_indices(frames, frame_indices)
    _check_layout(size, layout, patch_size, merge_size, temporal_patch_size)
    _check_normalisation(mean, std)
    if dtype not in _OUTPUT_DTYPES:
        raise TypeError(
            f"frame_resample: dtype must be one of {_OUTPUT_DTYPES}, got {dtype}; convert the result instead"
        )
    num_frames = frames.shape[0] if frame_indices is None else frame_indices.shape[0]
    shape = _output_shape(num_frames, size, layout, patch_size, merge_size, temporal_patch_size)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"frame_resample: the output {shape} is too large to address; take fewer or smaller frames")
    return frames.new_empty(shape, dtype=dtype)


class AxisTables(NamedTuple):
    """The weights of one axis on a device.

    starts, sizes: int32 [out], the first input of each output and how many it sums.
    weights: int16 [out, taps].
    precision: weights are multiples of 2 ** -precision.
    """

    starts: Tensor
    sizes: Tensor
    weights: Tensor
    precision: int


@functools.cache  # unbounded: a captured CUDA graph reads the tables for as long as it lives
def axis_tables(in_size: int, out_size: int, device: torch.device, taps_multiple: int) -> AxisTables:
    """The tables of one axis, their rows padded to a multiple of ``taps_multiple``."""
    starts, sizes, weights, taps, precision = _C.bicubic_axis(in_size, out_size, taps_multiple)
    return AxisTables(
        torch.frombuffer(bytearray(starts), dtype=torch.int32).to(device),
        torch.frombuffer(bytearray(sizes), dtype=torch.int32).to(device),
        torch.frombuffer(bytearray(weights), dtype=torch.int16).view(-1, taps).to(device),
        precision,
    )


@functools.cache  # the tables that it points at are cached for ever too
def _axis_view(in_size: int, out_size: int, device: torch.device, taps_multiple: int) -> _C.AxisView:
    starts, sizes, weights, precision = axis_tables(in_size, out_size, device, taps_multiple)
    return _C.AxisView(starts.data_ptr(), sizes.data_ptr(), weights.data_ptr(), weights.shape[1], precision)


def _checked_indices(frames: Tensor, frame_indices: Tensor | None) -> Tensor | None:
    if frame_indices is None:
        return None
    if values_are_checked(frame_indices) and frame_indices.numel() > 0:
        low, high = (int(value) for value in torch.aminmax(frame_indices))
        if low < 0 or high >= frames.shape[0]:
            raise ValueError(
                f"frame_resample: frame_indices must be between 0 and {frames.shape[0] - 1}, got values from {low} to "
                f"{high}; clamp them to the clip"
            )
    values = frame_indices.contiguous()
    if values.device == frames.device:
        return values
    # From pinned memory, which torch keeps until the copy has passed, so that nothing waits for the device.
    return values.pin_memory().to(frames.device, non_blocking=True)


@torch.library.custom_op("zoomzero::frame_resample", mutates_args=())
def _frame_resample(
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    layout: str,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    dtype: torch.dtype,
) -> Tensor:
    out = _checked_output(
        frames, frame_indices, size, mean, std, layout, patch_size, merge_size, temporal_patch_size, dtype
    )
    require_cuda_build("frame_resample", frames.device)
    patches = (0, 1, 1) if layout == "tchw" else (patch_size, merge_size, temporal_patch_size)
    indices = _checked_indices(frames, frame_indices)
    if out.numel() == 0:
        return out
    params = native_params(frames, indices, out, size, mean, std, patches)
    if frames.device.type == "cpu":
        _C.frame_resample_cpu(params, torch.get_num_threads())
    else:
        with torch.cuda.device(frames.device):
            _C.frame_resample_cuda(params, frames.device.index, native.stream(frames.device))
    return out


_frame_resample.register_fake(_checked_output)


def native_params(
    frames: Tensor,
    frame_indices: Tensor | None,
    out: Tensor,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    patches: tuple[int, int, int],
    taps_multiple: int | None = None,
) -> _C.FrameResampleParams:
    """Checked arguments as native code takes them.

    ``patches`` is (ps, m, tp), ps = 0 for planes; ``taps_multiple`` is what the device wants unless given.
    """
    if taps_multiple is None:
        taps_multiple = _C.frame_resample_cpu_taps_multiple() if frames.device.type == "cpu" else 1
    num_source_frames, in_h, in_w, _ = frames.shape
    num_frames = num_source_frames if frame_indices is None else frame_indices.shape[0]
    out_h, out_w = size
    device = frames.device
    return _C.FrameResampleParams(
        _C.FrameArray(frames.data_ptr(), frames.shape, frames.stride()),
        native.address(frame_indices, torch.int64, num_frames, device),
        num_frames,
        (
            _axis_view(in_h, out_h, device, 1),
            _axis_view(in_w, out_w, device, taps_multiple),
        ),
        (out_h, out_w),
        # x/255/std - mean/std as one multiply-add, the factors rounded once from float64.
        (
            (1 / (255 * std[0]), 1 / (255 * std[1]), 1 / (255 * std[2])),
            (-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2]),
        ),
        patches,
        (native.address(out, out.dtype, out.numel(), device), native.element_type(out)),
    )
