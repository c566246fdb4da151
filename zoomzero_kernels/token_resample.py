"""Visual tokens to coarser or finer grids by exact area averaging, slice by slice, under one budget."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels import _C
from zoomzero_kernels.host import cuda_kernels, native, registration
from zoomzero_kernels.host.arrays import takes_arrays
from zoomzero_kernels.host.checks import require_cuda_build

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Products of two sides stay below 2^31, where float32 weights still hold them exactly enough.
_MAX_SIDE = 32_768
# Device tables that a captured CUDA graph reads for as long as it lives.
_kept_for_graphs: list[DeviceTables] = []


@takes_arrays
def token_resample(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    """Average every temporal slice of visual tokens down (or up) to a grid of its own.

    A target cell (i, j) of a slice of h x w tokens covers the source area [i h/h', (i+1) h/h') x [j w/w', (j+1) w/w');
    its value is the average over that area, partly covered tokens counted in part. Whole ratios give average pooling.
    Sums are float32 whatever the dtype. This lets a second pass over a video keep cheap context tokens of the first
    one beside zoomed ones.

    Args:
        tokens: [sum(t*h*w), D] float32, bfloat16 or float16, CPU or CUDA; the tokens of all videos, row-major.
        grid_thw: int64 [G, 3], the (t, h, w) of each video in tokens.
        target_hw: int64 [sum(t), 2], the (h', w') of every temporal slice of all videos.

    Returns:
        [sum(h'*w'), D], dtype and device of ``tokens``. Differentiable in ``tokens``; the gradient is deterministic.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit together, or sides outside 1 to 32768.

    On CUDA the op runs on the current stream. It waits for the device in two cases only: where ``grid_thw`` or
    ``target_hw`` lie on the device, as they are copied back first (the size of the result depends on their values),
    and for grids not among the last 256, whose tables (56 bytes a slice, 4 bytes an output token) are copied there and
    kept. Besides those it allocates the result. Call once with the same grids, and backward, before capturing a graph.
    """
    _check_arguments(tokens, grid_thw, target_hw)
    return torch.ops.zoomzero.token_resample(tokens, grid_thw, target_hw)


def _check_arguments(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> None:
    """Everything that can be checked without reading data."""
    for name, value in (("tokens", tokens), ("grid_thw", grid_thw), ("target_hw", target_hw)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"token_resample: {name} must be a torch tensor, got {type(value).__name__}; use torch.as_tensor"
            )
    if tokens.dtype not in _DTYPES:
        raise TypeError(
            f"token_resample: tokens must be one of {_DTYPES}, got {tokens.dtype}; convert with tokens.to()"
        )
    if tokens.dim() != 2:
        raise ValueError(
            f"token_resample: tokens must be [sum(t*h*w), D], got shape {list(tokens.shape)}; flatten all but the "
            f"last axis"
        )
    for name, value, columns in (("grid_thw", grid_thw, 3), ("target_hw", target_hw, 2)):
        if value.dtype != torch.int64:
            raise TypeError(f"token_resample: {name} must be int64, got {value.dtype}; convert with {name}.long()")
        if value.dim() != 2 or value.shape[1] != columns:
            raise ValueError(
                f"token_resample: {name} must be [n, {columns}], got shape {list(value.shape)}; pass one row for each "
                f"{'video' if name == 'grid_thw' else 'temporal slice'}"
            )
    if tokens.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"token_resample: tokens must be on cpu or cuda, got {tokens.device}; move them with tokens.to()"
        )
    for name, value in (("grid_thw", grid_thw), ("target_hw", target_hw)):
        if value.device != tokens.device and value.device.type != "cpu":
            raise ValueError(
                f"token_resample: {name} must be on the CPU or the tokens' device, got {value.device} with tokens on "
                f"{tokens.device}; move it with {name}.cpu()"
            )


class SliceTable(NamedTuple):
    """How every slice becomes another, on the CPU.

    slices: int64 [S, 7], rows (first_in, in_h, in_w, first_out, out_h, out_w, first_out_grid_row).
    """

    slices: Tensor
    num_in: int
    num_out: int
    num_grid_rows: int


class DeviceTables(NamedTuple):
    """A slice table on a device; slice_of_token: int32 [num_out], None for the CPU, which goes by grid rows."""

    slices: Tensor
    slice_of_token: Tensor | None


def _slice_sides(grid: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Source and target sides of every slice, int64 [S, 2] each, checked; from tensors on the CPU."""
    for name, sides in (("grid_thw", grid), ("target_hw", target)):
        if sides.numel() > 0 and (int(sides.min()) < 1 or int(sides.max()) > _MAX_SIDE):
            raise ValueError(
                f"token_resample: {name} must hold values between 1 and {_MAX_SIDE}, got {int(sides.min())} to "
                f"{int(sides.max())}; drop empty slices"
            )
    source = grid[:, 1:].repeat_interleave(grid[:, 0], dim=0)
    if source.shape[0] != target.shape[0]:
        raise ValueError(
            f"token_resample: target_hw must have one row for each of the {source.shape[0]} temporal slices of "
            f"grid_thw, got {target.shape[0]}; repeat a video's target for all its slices"
        )
    return source, target


def _slice_table(from_sides: Tensor, to_sides: Tensor) -> SliceTable:
    slices = torch.empty(from_sides.shape[0], 7, dtype=torch.int64)
    counts_in, counts_out, rows_out = from_sides.prod(1), to_sides.prod(1), to_sides[:, 0]
    slices[:, 0] = counts_in.cumsum(0) - counts_in
    slices[:, 1:3] = from_sides
    slices[:, 3] = counts_out.cumsum(0) - counts_out
    slices[:, 4:6] = to_sides
    slices[:, 6] = rows_out.cumsum(0) - rows_out
    return SliceTable(slices, int(counts_in.sum()), int(counts_out.sum()), int(rows_out.sum()))


# A grid as its bytes, which are hashed faster than tensors are added up.
_Grids = tuple[bytes, bytes]


def _grids(grid_thw: Tensor, target_hw: Tensor) -> _Grids:
    grid, target = grid_thw.cpu().contiguous(), target_hw.cpu().contiguous()
    return grid.numpy().tobytes(), target.numpy().tobytes()


@functools.lru_cache(maxsize=256)
def _table(grids: _Grids, backward: bool) -> SliceTable:
    grid, target = (torch.frombuffer(bytearray(values), dtype=torch.int64) if values else None for values in grids)
    empty = torch.empty(0, dtype=torch.int64)
    sides = _slice_sides(
        *((empty if values is None else values).view(-1, columns) for values, columns in ((grid, 3), (target, 2)))
    )
    return _slice_table(*(reversed(sides) if backward else sides))


@functools.lru_cache(maxsize=256)
def _tables_on_device(grids: _Grids, backward: bool, device: torch.device) -> DeviceTables:
    return device_tables(_table(grids, backward), device)


def device_tables(table: SliceTable, device: torch.device) -> DeviceTables:
    """The tables as the CUDA kernel reads them; copied before this returns, so that every stream may read them."""
    counts = table.slices[:, 4] * table.slices[:, 5]
    slice_of_token = torch.arange(counts.shape[0], dtype=torch.int32).repeat_interleave(counts)
    return DeviceTables(table.slices.to(device), slice_of_token.to(device))


def _tables(grids: _Grids, backward: bool, device: torch.device) -> DeviceTables:
    if device.type == "cpu":
        return DeviceTables(_table(grids, backward).slices, None)
    tables = _tables_on_device(grids, backward, device)
    if torch.cuda.is_current_stream_capturing():
        _kept_for_graphs.append(tables)
    else:
        # The cache may drop them while a kernel on this stream still reads: their memory must wait for it.
        for values in tables:
            if values is not None:
                values.record_stream(torch.cuda.current_stream(device))
    return tables


def _resample(values: Tensor, grids: _Grids, *, backward: bool) -> Tensor:
    require_cuda_build("token_resample", values.device)
    table = _table(grids, backward)
    out = values.new_empty(table.num_out, values.shape[1])
    if out.numel() == 0:
        return out
    source = values.contiguous()  # lives until the launch, as the tables do
    tables = _tables(grids, backward, values.device)
    params = native_params(source, out, table, tables, backward=backward)
    if values.device.type == "cpu":
        _C.token_resample_cpu(params, torch.get_num_threads())
    else:
        cuda_kernels.run("token_resample", _C.token_resample_launch(params), values.device)
    return out


def native_params(
    source: Tensor, out: Tensor, table: SliceTable, tables: DeviceTables, *, backward: bool
) -> _C.TokenResampleParams:
    """Contiguous [n, D] to [m, D] of one dtype by a table of slices, all on one device, as native code takes them."""
    num_slices = table.slices.shape[0]
    return _C.TokenResampleParams(
        native.address(source, out.dtype, source.numel(), out.device),
        out.data_ptr(),
        (
            native.address(tables.slices, torch.int64, num_slices * 7, out.device),
            native.address(tables.slice_of_token, torch.int32, table.num_out, out.device),
        ),
        (num_slices, out.shape[0], table.num_grid_rows, out.shape[1]),
        native.element_type(out),
        backward,
    )


@registration.op("token_resample", differentiable=True)
def _token_resample(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    _check_arguments(tokens, grid_thw, target_hw)
    grids = _grids(grid_thw, target_hw)
    expected = _table(grids, False).num_in
    if expected != tokens.shape[0]:
        raise ValueError(
            f"token_resample: tokens must have sum(t*h*w) = {expected} rows, got {tokens.shape[0]}; count grid_thw in "
            "merged tokens, not in patches"
        )
    return _resample(tokens, grids, backward=False)


@torch.library.register_fake("zoomzero::token_resample")
def _token_resample_fake(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    _check_arguments(tokens, grid_thw, target_hw)
    return tokens.new_empty(torch.library.get_ctx().new_dynamic_size(), tokens.shape[1])


@torch.library.custom_op("zoomzero::token_resample_backward", mutates_args=())
def _token_resample_backward(grad: Tensor, grid_thw: Tensor, target_hw: Tensor, num_tokens: int) -> Tensor:
    return _resample(grad, _grids(grid_thw, target_hw), backward=True)


@_token_resample_backward.register_fake
def _token_resample_backward_fake(grad: Tensor, grid_thw: Tensor, target_hw: Tensor, num_tokens: int) -> Tensor:
    return grad.new_empty(num_tokens, grad.shape[1])


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor
) -> None:
    tokens, grid_thw, target_hw = inputs
    ctx.save_for_backward(grid_thw, target_hw)
    ctx.num_tokens = tokens.shape[0]  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    grid_thw, target_hw = ctx.saved_tensors  # type: ignore[attr-defined]
    num_tokens = ctx.num_tokens  # type: ignore[attr-defined]
    return torch.ops.zoomzero.token_resample_backward(grad, grid_thw, target_hw, num_tokens), None, None


torch.library.register_autograd("zoomzero::token_resample", _backward, setup_context=_setup_context)
