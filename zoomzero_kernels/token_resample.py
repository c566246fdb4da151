"""Visual tokens to coarser or finer grids by exact area averaging, slice by slice, under one budget."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from zoomzero_kernels import _C, native
from zoomzero_kernels.arrays import takes_arrays
from zoomzero_kernels.checks import require_cuda_build

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Products of two sides stay below 2^31, where float32 weights still hold them exactly enough.
_MAX_SIDE = 32_768
# Device tables that a captured CUDA graph reads for as long as it lives.
_kept_for_graphs: list[Tensor] = []


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

    On CUDA the op runs on the current stream and never waits for the device as long as ``grid_thw`` and ``target_hw``
    lie on the CPU (on the device they are copied back first, which waits). The size of the result depends on their
    values. It allocates the result and, for grids not seen lately, a table of 56 bytes a slice; call once before
    capturing a CUDA graph.
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


def _slice_sides(num_tokens: int, grid_thw: Tensor, target_hw: Tensor) -> tuple[Tensor, Tensor]:
    """Source and target sides of every slice, int64 [S, 2] each on the CPU, checked."""
    grid, target = grid_thw.cpu(), target_hw.cpu()
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
            f"grid_thw, "
            f"got {target.shape[0]}; repeat a video's target for all its slices"
        )
    expected = int(source.prod(1).sum())
    if expected != num_tokens:
        raise ValueError(
            f"token_resample: tokens must have sum(t*h*w) = {expected} rows, got {num_tokens}; count grid_thw in "
            f"merged "
            "tokens, not in patches"
        )
    return source, target


def _slice_table(from_sides: Tensor, to_sides: Tensor) -> tuple[Tensor, int, int]:
    """Rows (first_in, in_h, in_w, first_out, out_h, out_w, first_out_grid_row), output tokens, output grid rows."""
    table = torch.empty(from_sides.shape[0], 7, dtype=torch.int64)
    counts_in, counts_out, rows_out = from_sides.prod(1), to_sides.prod(1), to_sides[:, 0]
    table[:, 0] = counts_in.cumsum(0) - counts_in
    table[:, 1:3] = from_sides
    table[:, 3] = counts_out.cumsum(0) - counts_out
    table[:, 4:6] = to_sides
    table[:, 6] = rows_out.cumsum(0) - rows_out
    return table, int(counts_out.sum()), int(rows_out.sum())


@functools.lru_cache(maxsize=256)
def _device_table(table_bytes: bytes, device: torch.device) -> Tensor:
    table = torch.frombuffer(bytearray(table_bytes), dtype=torch.int64).view(-1, 7)
    return table.to(device)


def _table_on(table: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return table
    on_device = _device_table(table.numpy().tobytes(), device)
    if torch.cuda.is_current_stream_capturing():
        _kept_for_graphs.append(on_device)
    return on_device


def _resample(values: Tensor, from_sides: Tensor, to_sides: Tensor, *, backward: bool) -> Tensor:
    require_cuda_build("token_resample", values.device)
    table, num_out, num_grid_rows = _slice_table(from_sides, to_sides)
    out = values.new_empty(num_out, values.shape[1])
    source, slices = values.contiguous(), _table_on(table, values.device)
    if out.numel() == 0:
        return out
    params = native_params(source, out, slices, num_grid_rows, backward=backward)
    if values.device.type == "cpu":
        _C.token_resample_cpu(params, torch.get_num_threads())
    else:
        with torch.cuda.device(values.device):
            _C.token_resample_cuda(params, values.device.index, native.stream(values.device))
    return out


def native_params(
    source: Tensor, out: Tensor, slices: Tensor, num_grid_rows: int, *, backward: bool
) -> _C.TokenResampleParams:
    """Contiguous [n, D] to [m, D] of one dtype by a table of slices, all on one device, as native code takes them."""
    return _C.TokenResampleParams(
        native.address(source, out.dtype, source.numel(), out.device),
        out.data_ptr(),
        native.address(slices, torch.int64, slices.shape[0] * 7, out.device),
        (slices.shape[0], out.shape[0], num_grid_rows, out.shape[1]),
        native.element_type(out),
        backward,
    )


@torch.library.custom_op("zoomzero::token_resample", mutates_args=())
def _token_resample(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    _check_arguments(tokens, grid_thw, target_hw)
    source, target = _slice_sides(tokens.shape[0], grid_thw, target_hw)
    return _resample(tokens, source, target, backward=False)


@_token_resample.register_fake
def _token_resample_fake(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    _check_arguments(tokens, grid_thw, target_hw)
    return tokens.new_empty(torch.library.get_ctx().new_dynamic_size(), tokens.shape[1])


@torch.library.custom_op("zoomzero::token_resample_backward", mutates_args=())
def _token_resample_backward(grad: Tensor, grid_thw: Tensor, target_hw: Tensor, num_tokens: int) -> Tensor:
    source, target = _slice_sides(num_tokens, grid_thw, target_hw)
    return _resample(grad, target, source, backward=True)


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


_token_resample.register_autograd(_backward, setup_context=_setup_context)
