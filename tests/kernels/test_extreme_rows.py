"""Rows at the edges of the numbers on the CPU; support/interpreted_kernels.py checks the same of the Triton kernels."""

from __future__ import annotations

import math

import pytest
import torch
from support import extreme_rows

# float64 runs in plain torch, the others in the native kernels.
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])


@each_dtype
@pytest.mark.parametrize("temperature", extreme_rows.TEMPERATURES)
@pytest.mark.parametrize("scale", extreme_rows.SCALES)
def test_log_probabilities(dtype: torch.dtype, temperature: float, scale: float) -> None:
    extreme_rows.check_log_probabilities(dtype, temperature, scale)


@each_dtype
def test_any_temperature(dtype: torch.dtype) -> None:
    extreme_rows.check_any_temperature(dtype)


@each_dtype
@pytest.mark.parametrize("temperature", extreme_rows.TEMPERATURES)
def test_a_vocabulary_of_one(dtype: torch.dtype, temperature: float) -> None:
    extreme_rows.check_vocabulary_of_one(dtype, temperature)


@each_dtype
@pytest.mark.parametrize(("level", "fault"), extreme_rows.FAULTS)
@pytest.mark.parametrize("on_policy", [False, True])
def test_an_advantage_of_zero(dtype: torch.dtype, level: str, fault: str, on_policy: bool) -> None:
    extreme_rows.check_advantage_of_zero(dtype, level, fault, on_policy)


@pytest.mark.parametrize("fault", ["nan", "ratio"])
def test_hidden_states_under_an_advantage_of_zero(fault: str) -> None:
    extreme_rows.check_hidden_states_under_an_advantage_of_zero(fault)


@each_dtype
def test_an_overflowing_ratio_beside_a_kl_term(dtype: torch.dtype) -> None:
    extreme_rows.check_overflowing_ratio_beside_a_kl_term(dtype)


@each_dtype
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_upstream_gradient(dtype: torch.dtype, bad: float) -> None:
    extreme_rows.check_no_upstream_gradient(dtype, bad)
