"""Batches bounded in tokens, and what is computed in them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_qwen import COARSE, SHORT, ZOOM, random_inputs, random_model

from zoomzero.models.batches import by_tokens
from zoomzero.models.encoding import encode_prompts
from zoomzero.models.forward import next_token_logps
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate


@given(sizes=st.lists(st.integers(0, 9), max_size=12), limit=st.integers(1, 20))
def test_batches_hold_all_in_order_and_no_more_than_fits(sizes: list[int], limit: int) -> None:
    batches = list(by_tokens(sizes, limit))
    assert [index for batch in batches for index in batch] == list(range(len(sizes)))
    assert all(len(batch) == 1 or sum(sizes[index] for index in batch) <= limit for batch in batches)
    for one, following in itertools.pairwise(batches):  # the next did not fit
        assert sum(sizes[index] for index in one) + sizes[following[0]] > limit


def test_prompts_share_a_forward_up_to_a_number_of_tokens() -> None:
    model = random_model()
    shapes = (COARSE, ZOOM, SHORT, ZOOM)
    prompts = encode_prompts(model, [random_inputs(shape, seed) for seed, shape in enumerate(shapes)])
    calls: list[int] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, __, options: calls.append(options["inputs_embeds"].shape[1]), with_kwargs=True
    )
    whole = next_token_logps(model, prompts)
    sizes = [prompt.input_ids.numel() for prompt in prompts]
    assert calls == [sum(sizes)]
    parts = next_token_logps(model, prompts, forward_tokens=sizes[0] + sizes[1])
    assert calls[1:] == [sizes[0] + sizes[1], sizes[2] + sizes[3]]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


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
