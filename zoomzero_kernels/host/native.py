"""What the native module is handed in place of tensors, since it knows no torch: addresses, element types, streams."""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels import _C

_ELEMENT_TYPES = {
    torch.float32: _C.ElementType.FLOAT32,
    torch.bfloat16: _C.ElementType.BFLOAT16,
    torch.float16: _C.ElementType.FLOAT16,
}


def element_type(tensor: Tensor) -> _C.ElementType:
    """The native name of a tensor's dtype.

    Raises:
        TypeError: no native code reads this dtype.
    """
    try:
        return _ELEMENT_TYPES[tensor.dtype]
    except KeyError:
        raise TypeError(
            f"zoomzero_kernels: native code takes {', '.join(map(str, _ELEMENT_TYPES))}, got {tensor.dtype}; convert "
            "with .to()"
        ) from None


def address(tensor: Tensor | None, dtype: torch.dtype, count: int, device: torch.device) -> int:
    """Where the values of a contiguous tensor lie; 0 for None. The caller keeps the tensor alive during the call.

    Native code cannot see that a tensor is not what it takes it for, so a fault of a caller must show here.

    Raises:
        ValueError: another dtype, number of values or device, or a tensor that is not contiguous.
    """
    if tensor is None:
        return 0
    if tensor.dtype != dtype or tensor.numel() != count or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"zoomzero_kernels: native code must be given {count} contiguous values of {dtype} on {device}, got "
            f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}; report this fault "
            "of zoomzero"
        )
    return tensor.data_ptr()


def stream(device: torch.device) -> int:
    """The handle of torch's current stream on a CUDA device."""
    return torch.cuda.current_stream(device).cuda_stream
