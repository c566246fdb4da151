"""Video frames to model inputs in one pass: gather, antialiased bicubic resize, normalise, patch order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.frame_resample_arguments import (
    LAYOUTS,
    PLANES,
    check_frames,
    check_indices,
    check_out,
    check_sequence,
    check_shape_of,
    check_side,
    checked_shape,
    default_dtype,
)
from zoomzero_kernels.host import cuda_kernels, native, registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import require_cuda_build, values_are_checked


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
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
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
        dtype: torch.float32, torch.bfloat16 or torch.float16; None takes that of ``out``, or else bfloat16 for frames
            on CUDA and float32 for others.
        out: where the result goes, of its shape and dtype, contiguous, on the frames' device; a slice of the patches of
            a longer clip, for instance.

    Returns:
        The normalised frames in the layout asked for, contiguous, on the frames' device: ``out`` itself where it is
        given. Not differentiable.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, size, index, layout or device outside what is described above.

    On CUDA the op runs on the current stream and allocates its output, and a copy of ``frame_indices`` that lie on the
    CPU. It waits for the device in one case only: the weight tables of a shape are copied there on its first use and
    kept. So call once before capturing a CUDA graph, and capture with ``frame_indices`` on the device.
    """
    # What the dispatcher would reject with a message about schemas; the op itself checks the rest.
    check_frames(frames)
    check_indices(frames, frame_indices)
    check_sequence("size", size, 2)
    check_sequence("mean", mean, 3)
    check_sequence("std", std, 3)
    for name, value in (
        ("size", size[0]),
        ("size", size[1]),
        ("patch_size", patch_size),
        ("merge_size", merge_size),
        ("temporal_patch_size", temporal_patch_size),
    ):
        if not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"frame_resample: {name} must be of integers, got {value!r}; round it first")
    if layout not in LAYOUTS:
        raise ValueError(f"frame_resample: layout must be one of {LAYOUTS}, got {layout!r}; choose one of them")
    if dtype is None:
        dtype = default_dtype(frames.device) if out is None else out.dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"frame_resample: dtype must be a torch.dtype, got {dtype!r}; pass dtype=torch.float32, for instance"
        )
    patches = list(PLANES) if layout == "tchw" else [patch_size, merge_size, temporal_patch_size]
    if layout == "patches":
        check_side("patch_size", patch_size)  # 0 would stand for planes below
    arguments = (frames, frame_indices, list(size), [*mean, *std], patches)
    if out is None:
        return torch.ops.zoomzero.frame_resample(*arguments, dtype)
    check_out(out, dtype, frames)
    torch.ops.zoomzero.frame_resample_(out, *arguments)
    return out


class AxisTables(NamedTuple):
    """The weights of one axis on a device.

    starts, sizes: int32 [out], the first input of each output and how many it sums.
    weights: int16 [out, taps].
    view: the addresses of the three for native code, with the precision of the weights.
    """

    starts: Tensor
    sizes: Tensor
    weights: Tensor
    view: _C.AxisView


# Unbounded, and nothing in it is replaced: native code and captured CUDA graphs read the tables by their addresses.
_axes: dict[tuple[int, int, torch.device, int], AxisTables] = {}


def axis_tables(in_size: int, out_size: int, device: torch.device, taps_multiple: int) -> AxisTables:
    """The tables of one axis, their rows padded to a multiple of ``taps_multiple``; the same ones for ever.

    Threads that ask at the same time may each make some, and all take those that were stored first. With
    ``functools.cache`` the last would replace, and free, those whose addresses another thread has taken.
    """
    key = (in_size, out_size, device, taps_multiple)
    tables = _axes.get(key)
    return _axes.setdefault(key, _made_tables(*key)) if tables is None else tables


def _made_tables(in_size: int, out_size: int, device: torch.device, taps_multiple: int) -> AxisTables:
    starts, sizes, weights, taps, precision = _C.bicubic_axis(in_size, out_size, taps_multiple)
    first, count = (torch.frombuffer(bytearray(values), dtype=torch.int32).to(device) for values in (starts, sizes))
    weight = torch.frombuffer(bytearray(weights), dtype=torch.int16).view(-1, taps).to(device)
    view = _C.AxisView(first.data_ptr(), count.data_ptr(), weight.data_ptr(), taps, precision)
    return AxisTables(first, count, weight, view)


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


def _fill(
    out: Tensor,
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
) -> None:
    require_cuda_build("frame_resample", frames.device)
    indices = _checked_indices(frames, frame_indices)
    if out.numel() == 0:
        return
    params = native_params(frames, indices, out, size, statistics, patches)
    if frames.device.type == "cpu":
        _C.frame_resample_cpu(params, torch.get_num_threads())
    else:
        num_processors = torch.cuda.get_device_properties(frames.device).multi_processor_count
        cuda_kernels.run("frame_resample", _C.frame_resample_launch(params, num_processors), frames.device)


@registration.op("frame_resample", differentiable=False)
def _frame_resample(
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    shape = checked_shape(frames, frame_indices, size, statistics, patches, dtype)
    out = frames.new_empty(shape, dtype=dtype)
    _fill(out, frames, frame_indices, size, statistics, patches)
    return out


@torch.library.register_fake("zoomzero::frame_resample")
def _frame_resample_fake(
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return frames.new_empty(checked_shape(frames, frame_indices, size, statistics, patches, dtype), dtype=dtype)


@torch.library.custom_op("zoomzero::frame_resample_", mutates_args={"out"})
def _frame_resample_into(
    out: Tensor,
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
) -> None:
    check_shape_of(out, checked_shape(frames, frame_indices, size, statistics, patches, out.dtype))
    _fill(out, frames, frame_indices, size, statistics, patches)


@_frame_resample_into.register_fake
def _frame_resample_into_fake(
    out: Tensor,
    frames: Tensor,
    frame_indices: Tensor | None,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
) -> None:
    check_shape_of(out, checked_shape(frames, frame_indices, size, statistics, patches, out.dtype))


def native_params(
    frames: Tensor,
    frame_indices: Tensor | None,
    out: Tensor,
    size: Sequence[int],
    statistics: Sequence[float],
    patches: Sequence[int],
    taps_multiple: int | None = None,
) -> _C.FrameResampleParams:
    """Checked arguments as native code takes them.

    ``statistics`` are three means and three deviations, ``patches`` is (ps, m, tp), ps = 0 for planes;
    ``taps_multiple`` is what the device wants unless given.
    """
    if taps_multiple is None:
        taps_multiple = _C.frame_resample_cpu_taps_multiple() if frames.device.type == "cpu" else 1
    num_source_frames, in_h, in_w, _ = frames.shape
    num_frames = num_source_frames if frame_indices is None else frame_indices.shape[0]
    out_h, out_w = size
    device = frames.device
    mean, std = statistics[:3], statistics[3:]
    return _C.FrameResampleParams(
        _C.FrameArray(frames.data_ptr(), frames.shape, frames.stride()),
        native.address(frame_indices, torch.int64, num_frames, device),
        num_frames,
        (
            axis_tables(in_h, out_h, device, 1).view,
            axis_tables(in_w, out_w, device, taps_multiple).view,
        ),
        (out_h, out_w),
        # x/255/std - mean/std as one multiply-add, the factors rounded once from float64.
        (
            (1 / (255 * std[0]), 1 / (255 * std[1]), 1 / (255 * std[2])),
            (-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2]),
        ),
        (patches[0], patches[1], patches[2]),
        (native.address(out, out.dtype, out.numel(), device), native.element_type(out)),
    )
