"""Ops on arrays of other libraries, handed over by DLPack: results must be that library's, and equal.

NumPy's, and JAX's where it is installed; CuPy has no arrays without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.grpo_cases import make_case
from torch import Tensor

import zoomzero_kernels
from zoomzero_kernels import (
    frame_resample,
    grpo_loss,
    linear_grpo_loss,
    linear_selective_logps,
    selective_logps,
    shared_prefix_attention,
    token_advantages,
    token_resample,
)
from zoomzero_kernels.host.arrays import takes_arrays


def _calls() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """One call of every public op, with all kinds of arguments: tensors among the options, bools, lists."""
    generator = torch.Generator().manual_seed(0)
    case = make_case()
    logits = case.logits.float()
    hidden, weight = torch.randn(3, 5, 8, generator=generator), torch.randn(37, 8, generator=generator)
    advantages, old_logps = case.advantages.float(), case.old_logps.float()
    frames = torch.randint(0, 256, (4, 40, 60, 3), generator=generator, dtype=torch.uint8)
    normalised = {"size": (28, 56), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    rows = torch.randn(1, 2, 9, 16, generator=generator)
    segments = torch.randint(0, 2, (4, 6), generator=generator, dtype=torch.uint8)
    credit = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    groups, mask = torch.tensor([0, 0, 1, 1]), torch.ones(4, 6, dtype=torch.bool)
    tokens, grids = torch.randn(24, 8, generator=generator), torch.tensor([[2, 3, 4]])
    return {
        "frame_resample": (frame_resample, (frames, torch.tensor([2, 0, 3])), normalised),
        "token_resample": (token_resample, (tokens, grids, torch.tensor([[1, 2], [2, 2]])), {}),
        "token_advantages": (token_advantages, (torch.rand(4, 2), segments, credit, groups, mask), {}),
        "grpo_loss": (grpo_loss, (logits, case.token_ids, advantages, case.mask), {"old_logps": old_logps}),
        "linear_grpo_loss": (linear_grpo_loss, (hidden, weight, case.token_ids, advantages, case.mask), {}),
        "selective_logps": (selective_logps, (logits, case.token_ids), {"with_entropy": True}),
        "linear_selective_logps": (linear_selective_logps, (hidden, weight, case.token_ids), {}),
        "shared_prefix_attention": (shared_prefix_attention, (rows, rows, rows, [4], [[3, 2]]), {}),
    }


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_every_op_is_called() -> None:
    functions = {name for name in zoomzero_kernels.__all__ if name.islower()} - {"build_info", "reference", "warm_up"}
    assert set(_calls()) == functions


@pytest.fixture(params=["numpy", "jax"])
def library(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A module with NumPy's functions."""
    if request.param == "numpy":
        yield np
        return
    jax = pytest.importorskip("jax", reason="needs JAX; pip install jax")
    with jax.enable_x64(True):  # without it there is no int64, which ids of groups and grids are
        yield jax.numpy


@pytest.mark.parametrize("name", list(_calls()))
def test_takes_arrays_and_answers_in_kind(library: Any, name: str) -> None:
    def as_array(value: Any) -> Any:
        return library.asarray(value.numpy()) if isinstance(value, Tensor) else value

    array_type = type(library.zeros(1))
    op, arguments, options = _calls()[name]
    expected = op(*arguments, **options)
    found = op(*map(as_array, arguments), **{key: as_array(value) for key, value in options.items()})
    assert type(found) is type(expected) or isinstance(found, array_type)
    for mine, truth in zip(_parts(found), _parts(expected), strict=True):
        assert isinstance(mine, array_type)
        np.testing.assert_array_equal(np.asarray(mine), truth.detach().numpy())


def test_a_tensor_first_is_answered_by_tensors_with_gradients() -> None:
    case = make_case()
    logits = case.logits.float().requires_grad_()
    logps = selective_logps(logits, case.token_ids.numpy())
    assert isinstance(logps, Tensor)
    logps.sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) > 0


def test_nothing_is_copied(library: Any) -> None:
    @takes_arrays
    def same(tensor: Tensor) -> Tensor:
        addresses.append(tensor.data_ptr())
        return tensor

    addresses: list[int] = []
    array = library.zeros((2, 3), dtype=library.float32)
    assert [np.asarray(values).ctypes.data for values in (array, same(array))] == addresses * 2
