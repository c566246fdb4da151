"""Arrays of other libraries: ops take what offers DLPack without a copy, and answer in kind. Tested: NumPy, JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def takes_arrays(op: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let an op take DLPack producers in place of tensors.

    They are taken over without a copy (the protocol hands the producer's stream over), and results are given to the
    library of the first array among the arguments, unless that is a tensor. Arrays carry no gradients: whoever wants
    them passes tensors.
    """

    @functools.wraps(op)
    def taking(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        # Compiled code traces tensors only, and cannot ask a symbolic number for attributes.
        if torch.compiler.is_compiling():
            return op(*arguments, **options)
        given = (*arguments, *options.values())
        if not any(map(_is_array_type, map(type, given))):
            return op(*arguments, **options)
        first = next(value for value in given if isinstance(value, Tensor) or _is_array(value))
        result = cast(Callable[..., Any], op)(
            *(_as_tensor(value) for value in arguments), **{name: _as_tensor(value) for name, value in options.items()}
        )
        return result if isinstance(first, Tensor) else _in_kind(result, first)

    return taking


@functools.cache
def _is_array_type(kind: type) -> bool:
    return not issubclass(kind, Tensor) and hasattr(kind, "__dlpack__")


def _is_array(value: object) -> bool:
    return _is_array_type(type(value))  # type: ignore[arg-type]  # mypy takes types for unhashable


def _as_tensor(value: Any) -> Any:
    return torch.from_dlpack(value) if _is_array(value) else value


def _in_kind(result: Any, like: Any) -> Any:
    """Tensors in `result`, a tensor or a (named) tuple of them, as arrays of the library of `like`."""
    if isinstance(result, tuple):
        parts = (_in_kind(part, like) for part in result)
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    library = np if isinstance(like, np.ndarray) else like.__array_namespace__()
    return library.from_dlpack(result.detach())
