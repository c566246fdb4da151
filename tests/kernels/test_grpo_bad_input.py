"""Bad input that the policy losses share, through both of them, and errors that their own test files leave out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.grpo_cases import make_case

from zoomzero_kernels import grpo_loss, linear_grpo_loss, linear_selective_logps, token_advantages
from zoomzero_kernels.policy.objectives import PolicyOptions
from zoomzero_kernels.policy.tensors import PolicyTensors

META = {"device": "meta"}


def call(op: str, **change: Any) -> None:
    """One of the two losses on a case of [3, 5] tokens and 37 words, with some arguments replaced."""
    case = make_case()
    tokens = {"token_ids": case.token_ids, "advantages": case.advantages, "mask": case.mask, **change}
    if op == "grpo_loss":
        grpo_loss(case.logits.float(), **tokens)
    else:
        linear_grpo_loss(torch.zeros(3, 5, 8), torch.zeros(37, 8), **tokens)


# The checks of these arguments are one function for both losses; each row is one rule of it.
@pytest.mark.parametrize("op", ["grpo_loss", "linear_grpo_loss"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"token_ids": torch.zeros(5, 3).long()}, ValueError, r"token_ids must be \[B, T\] = \[3, 5\], got int64"),
        ({"token_ids": torch.zeros(3, 5)}, TypeError, "token_ids must be int64 or int32, got float32"),
        ({"token_ids": torch.zeros(3, 5, **META).long()}, ValueError, "token_ids must be on cpu, got meta"),
        ({"token_ids": torch.full((3, 5), -1)}, ValueError, r"token_ids must be in \[0, 37\) on valid tokens, got -1"),
        ({"advantages": torch.zeros(4)}, ValueError, r"advantages must be \[B, T\] = \[3, 5\] or \[B\] = \[3\]"),
        ({"advantages": torch.zeros(3, 1)}, ValueError, r"advantages must be \[B, T\] = \[3, 5\] or \[B\] = \[3\]"),
        ({"advantages": torch.zeros(3, 5, 1)}, ValueError, r"advantages must be \[B, T\]"),
        ({"advantages": torch.zeros(3).long()}, TypeError, r"advantages must be floating point, got int64 \[3\]"),
        ({"advantages": torch.zeros(3, **META)}, ValueError, "advantages must be on cpu, got meta"),
        ({"mask": torch.ones(3, 5)}, TypeError, "mask must be bool or integer 0/1, got float32"),
        ({"mask": torch.ones(3, 5, dtype=torch.complex64)}, TypeError, "mask must be bool or integer 0/1, got compl"),
        ({"mask": torch.full((3, 5), -1)}, ValueError, r"mask must hold 0 and 1 only, got -1; pass mask.bool\(\)"),
        ({"mask": torch.ones(3).bool()}, ValueError, r"mask must be \[B, T\] = \[3, 5\], got bool \[3\]"),
        ({"mask": torch.ones(3, 5, **META).bool()}, ValueError, "mask must be on cpu, got meta"),
        ({"old_logps": torch.zeros(3, 6)}, ValueError, r"old_logps must be \[B, T\] = \[3, 5\], got float32 \[3, 6\]"),
        ({"old_logps": torch.zeros(3, 5).long()}, TypeError, "old_logps must be floating point, got int64"),
        ({"old_logps": torch.zeros(3, 5, **META)}, ValueError, "old_logps must be on cpu, got meta"),
        ({"token_weights": torch.ones(3)}, ValueError, r"token_weights must be \[B, T\] = \[3, 5\], got float32 \[3\]"),
        ({"token_weights": torch.full((3, 5), -0.5)}, ValueError, r"token_weights must be finite and >= 0 .* got -0.5"),
        (
            {"token_weights": torch.full((3, 5), math.inf)},
            ValueError,
            "token_weights must be finite .* got inf",
        ),
        (
            {"token_weights": torch.full((3, 5), math.nan)},
            ValueError,
            "token_weights must be finite .* got nan",
        ),
        ({"ref_logps": torch.zeros(5, 3)}, ValueError, r"ref_logps must be \[B, T\] = \[3, 5\], got float32 \[5, 3\]"),
        ({"ref_logps": torch.zeros(3, 5, **META)}, ValueError, "ref_logps must be on cpu, got meta"),
        ({"beta": 0.1}, ValueError, "beta > 0 needs ref_logps, got beta=0.1 and no ref_logps"),
        ({"beta": math.nan}, ValueError, "beta must be finite and >= 0, got nan"),
        ({"beta": math.inf}, ValueError, "beta must be finite and >= 0, got inf"),
        ({"temperature": 0}, ValueError, "temperature must be finite and > 0, got 0"),
        ({"temperature": -0.7}, ValueError, "temperature must be finite and > 0, got -0.7"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite and > 0, got nan"),
        ({"temperature": math.inf}, ValueError, "temperature must be finite and > 0, got inf"),
        ({"clip_low": 1.0}, ValueError, r"clip_low must be in \[0, 1\), got 1.0"),
        ({"clip_low": -0.2}, ValueError, r"clip_low must be in \[0, 1\), got -0.2"),
        ({"clip_low": math.nan}, ValueError, r"clip_low must be in \[0, 1\), got nan"),
        ({"clip_high": math.nan}, ValueError, "clip_high must be >= 0, got nan"),
        ({"delta": 0.0}, ValueError, "delta must be > 0, got 0.0; pass delta=None for an unbounded ratio"),
        ({"sapo_temperature_pos": 0.0}, ValueError, "sapo_temperature_pos must be finite and > 0, got 0.0"),
        ({"sapo_temperature_neg": math.nan}, ValueError, "sapo_temperature_neg must be finite and > 0, got nan"),
        ({"delta": math.nan}, ValueError, "delta must be > 0, got nan"),
        ({"kl_clamp": -1.0}, ValueError, "kl_clamp must be > 0, got -1.0"),
        ({"loss_type": "ppo"}, ValueError, "unknown loss_type, got 'ppo'; use one of grpo, bnpo, dr_grpo, dapo"),
        ({"importance_sampling_level": "batch"}, ValueError, "unknown importance_sampling_level, got 'batch'"),
        ({"max_completion_length": -3}, ValueError, "max_completion_length must be > 0, got -3"),
        ({"num_items": math.nan}, ValueError, "num_items must be >= 0, got nan"),
        ({"num_items": torch.ones(3)}, ValueError, r"num_items must be one number, got float32 \[3\]"),
    ],
)
def test_both_losses_refuse(op: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{op}: {message}"):
        call(op, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3, 5, 8).long()}, ValueError, r"hidden must be floating point \[B, T, D\], got int64"),
        ({"weight": torch.zeros(0, 8)}, ValueError, r"weight must be \[V, D\] with D = 8, got float32 \[0, 8\]"),
        ({"weight": torch.zeros(37)}, ValueError, r"weight must be \[V, D\] with D = 8, got float32 \[37\]"),
        ({"bias": torch.zeros(37, 1)}, ValueError, r"bias must be \[V\] with V = 37, got float32 \[37, 1\]"),
        ({"bias": torch.zeros(37).double()}, TypeError, "bias must have the dtype of hidden, float32"),
        ({"bias": torch.zeros(37, **META)}, ValueError, "bias must be on cpu, got meta"),
    ],
)
@pytest.mark.parametrize("op", [linear_grpo_loss, linear_selective_logps])
def test_both_heads_refuse(op: Any, change: dict[str, Any], error: type[Exception], message: str) -> None:
    head = {"hidden": torch.zeros(3, 5, 8), "weight": torch.zeros(37, 8), **change}
    tokens = {"token_ids": torch.zeros(3, 5).long()}
    if op is linear_grpo_loss:
        tokens |= {"advantages": torch.zeros(3, 5), "mask": torch.ones(3, 5).bool()}
    with pytest.raises(error, match=f"^{op.__name__}: {message}"):
        op(**head, **tokens)


def test_a_gradient_that_was_not_stored_is_missed() -> None:
    case = make_case()
    weights = case.mask.float() / case.mask.sum()
    logits = case.logits.float().requires_grad_()
    tensors = PolicyTensors(case.token_ids, case.mask, case.advantages, weights)
    loss = torch.ops.zoomzero.grpo_loss(logits, tensors, PolicyOptions(), False)[0]
    with pytest.raises(RuntimeError, match="grpo_loss: the op stored no gradient, got needs_grad=False"):
        loss.backward()


# One id a response, whatever else has the right number of elements.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_ids": torch.zeros(7).long()}, r"group_ids must be int64 \[B\] with B = 6, got int64 \[7\]"),
        ({"group_ids": torch.zeros(6, 1).long()}, r"group_ids must be int64 \[B\] with B = 6, got int64 \[6, 1\]"),
        ({"group_ids": torch.zeros(6, **META).long()}, "group_ids must be on cpu, got meta"),
        ({"segments": torch.zeros(6, 9, **META).to(torch.uint8)}, "segments must be on cpu, got meta"),
        ({"segments": torch.zeros(6).to(torch.uint8)}, r"segments must be uint8 \[B, T\] with B = 6, got uint8 \[6\]"),
        ({"mask": torch.ones(6, 9, **META).bool()}, "mask must be on cpu, got meta"),
        ({"credit": torch.ones(2, 257)}, r"credit must be \[R, S\] with R = 2 and S in 1..256, got float32 \[2, 257\]"),
        ({"eps": math.nan}, "eps must be finite and >= 0, got nan"),
    ],
)
def test_token_advantages_refuses(change: dict[str, Any], message: str) -> None:
    arguments = {
        "rewards": torch.zeros(6, 2),
        "segments": torch.zeros(6, 9).to(torch.uint8),
        "credit": torch.ones(2, 3),
        "group_ids": torch.zeros(6).long(),
        "mask": torch.ones(6, 9).bool(),
    }
    with pytest.raises(ValueError, match=f"^token_advantages: {message}"):
        token_advantages(**{**arguments, **change})


def _bad_calls() -> list[tuple[dict[str, Any], type[Exception], str]]:
    return [
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and > 0, got -1.0"),
        ({"clip_low": 1.0}, ValueError, r"clip_low must be in \[0, 1\), got 1.0"),
        ({"clip_high": -0.1}, ValueError, "clip_high must be >= 0, got -0.1"),
        ({"kl_clamp": 0.0}, ValueError, "kl_clamp must be > 0, got 0.0"),
        ({"beta": -0.5}, ValueError, "beta must be finite and >= 0, got -0.5"),
        ({"beta": 0.5}, ValueError, "beta > 0 needs ref_logps"),
        (
            {"loss_type": "ppo"},
            ValueError,
            "unknown loss_type, got 'ppo'; use one of grpo, bnpo, dr_grpo, dapo, luspo",
        ),
        ({"importance_sampling_level": "word"}, ValueError, "unknown importance_sampling_level, got 'word'"),
        ({"max_completion_length": 0}, ValueError, "max_completion_length must be > 0, got 0"),
        ({"num_items": -1.0}, ValueError, "num_items must be >= 0, got -1.0"),
        ({"num_items": torch.ones(2)}, ValueError, "num_items must be one number"),
        ({"logits": torch.zeros(3, 37)}, ValueError, r"logits must be floating point \[B, T, V\]"),
        ({"logits": torch.zeros(3, 5, 37, dtype=torch.int64)}, ValueError, "logits must be floating point"),
        ({"logits": torch.zeros(3, 5, 0)}, ValueError, "logits must have V >= 1"),
        ({"token_ids": torch.zeros(3, 4, dtype=torch.int64)}, ValueError, r"token_ids must be \[B, T\] = \[3, 5\]"),
        ({"token_ids": torch.zeros(3, 5)}, TypeError, "token_ids must be int64 or int32, got float32"),
        ({"token_ids": torch.full((3, 5), 37)}, ValueError, r"token_ids must be in \[0, 37\) on valid tokens, got 37"),
        ({"token_ids": torch.full((3, 5), -1)}, ValueError, r"token_ids must be in \[0, 37\) on valid tokens, got -1"),
        ({"advantages": torch.zeros(5)}, ValueError, r"advantages must be \[B, T\] = \[3, 5\] or \[B\] = \[3\]"),
        ({"advantages": torch.zeros(3, 5).long()}, TypeError, "advantages must be floating point"),
        ({"mask": torch.ones(3, 5)}, TypeError, "mask must be bool or integer 0/1, got float32"),
        ({"mask": torch.ones(3, 1).bool()}, ValueError, r"mask must be \[B, T\] = \[3, 5\]"),
        ({"mask": torch.full((3, 5), 2)}, ValueError, "mask must hold 0 and 1 only, got 2"),
        ({"old_logps": torch.zeros(3)}, ValueError, r"old_logps must be \[B, T\]"),
        ({"ref_logps": torch.zeros(3, 5).long()}, TypeError, "ref_logps must be floating point"),
        ({"mask": torch.ones(3, 5, device="meta").bool()}, ValueError, "mask must be on cpu, got meta"),
        ({"advantages": torch.ones(3, 5, device="meta")}, ValueError, "advantages must be on cpu, got meta"),
    ]


@pytest.mark.parametrize(("change", "error", "message"), _bad_calls())
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    case = make_case()
    arguments = {
        "logits": case.logits.float(),
        "token_ids": case.token_ids,
        "advantages": case.advantages,
        "mask": case.mask,
        **change,
    }
    with pytest.raises(error, match=f"grpo_loss: {message}"):
        grpo_loss(**arguments)
