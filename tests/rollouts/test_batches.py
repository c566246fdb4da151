"""Batches bounded in tokens, and what is computed in them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.tiny_qwen import COARSE, SHORT, ZOOM, random_inputs, random_model

from zoomzero.models.encoding import encode_prompts
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.batches import by_tokens
from zoomzero.rollouts.shared_prompt import generate


@pytest.mark.parametrize(
    ("lengths", "bound", "expected"),
    [
        ([], 5, []),
        ([3], 1, [[0]]),
        ([2, 2, 2], 4, [[0, 1], [2]]),
        ([2, 9, 2, 2], 4, [[0], [1], [2, 3]]),
        ([1, 1, 1], 100, [[0, 1, 2]]),
    ],
)
def test_neighbours_up_to_the_bound(lengths: list[int], bound: int, expected: list[list[int]]) -> None:
    assert [list(batch) for batch in by_tokens(lengths, bound)] == expected


@pytest.mark.parametrize("bound", [1, 250])
def test_prompts_prefilled_apart_write_the_same(bound: int) -> None:
    model = random_model()
    with torch.no_grad():
        inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM, SHORT))]
        prompts = encode_prompts(model, inputs)
    options = SamplingOptions(8, (0,), 0, num_generations=2, temperature=0.0)
    bounded = dataclasses.replace(options, max_prefill_tokens=bound)
    whole, apart = generate(model, prompts, options), generate(model, prompts, bounded)
    assert torch.equal(whole.token_ids, apart.token_ids)
    torch.testing.assert_close(whole.logps, apart.logps, rtol=0, atol=1e-5)
