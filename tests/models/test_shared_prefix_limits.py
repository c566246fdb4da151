"""What `shared_prefix` leaves alone, puts back and refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.shared_prefix_models import numbers, padded, text_model, text_rows, video_rows
from support.tiny_qwen import ZOOM, random_inputs, random_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import zoomzero
from zoomzero.models.packed_attention import (
    PackedLengths,
    group_step_attention,
    packed_attention,
    use_packed_attention,
)


def test_generation_is_left_alone() -> None:
    model, rows = text_model("qwen2").eval(), text_rows()
    prompts = {name: tensor[:, :32] for name, tensor in rows.items()}
    expected = model.generate(**prompts, max_new_tokens=5, do_sample=False)
    with zoomzero.shared_prefix(model) as packed:
        torch.testing.assert_close(model.generate(**prompts, max_new_tokens=5, do_sample=False), expected)
    assert packed.tokens_computed == 0


def test_the_attention_is_as_before_behind_the_context() -> None:
    model = text_model("qwen2")

    def stop_inside() -> None:
        with zoomzero.shared_prefix(model):
            assert model.config._attn_implementation != "sdpa"
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        stop_inside()
    assert model.config._attn_implementation == "sdpa"
    assert not model.model._forward_hooks
    assert not model.model._forward_pre_hooks


def _gap(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = rows["attention_mask"].clone()
    mask[0, 20] = 0
    return {**rows, "attention_mask": mask}


# What a packed call cannot give, or rows that it cannot lay out: the model is called as it always is.
@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda rows: rows, {"use_cache": True}),
        (lambda rows: rows, {"output_hidden_states": True}),
        (_gap, {}),
        (lambda rows: {name: tensor[:1] for name, tensor in rows.items()}, {}),
        (lambda _: padded([numbers(20, 1), numbers(20, 2)], [[4], [5]]), {}),
        (lambda rows: {**rows, "attention_mask": torch.ones(6, 1, 39, 39).tril().bool()}, {}),
    ],
    ids=["cache", "hidden states", "gap", "one row", "nothing in common", "4-D mask"],
)
def test_other_calls_are_left_alone(change: Any, options: dict[str, Any]) -> None:
    model, rows = text_model("qwen2").eval(), change(text_rows())
    expected = model(**rows, **options)
    with zoomzero.shared_prefix(model) as packed:
        got = model(**rows, **options)
    assert packed.tokens_computed == 0
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=0)
    assert (got.past_key_values is None) == (expected.past_key_values is None)
    assert (got.hidden_states is None) == (expected.hidden_states is None)


def test_visual_rows_without_token_types_are_left_alone() -> None:
    """Qwen2.5-VL then gives visual tokens the positions of text."""
    model, rows = random_model(kv_heads=1), video_rows()
    del rows["mm_token_type_ids"]
    expected = model(**rows).logits
    with zoomzero.shared_prefix(model) as packed:
        torch.testing.assert_close(model(**rows).logits, expected, rtol=0, atol=0)
    assert packed.tokens_computed == 0


def test_what_is_no_decoder_is_refused() -> None:
    with pytest.raises(TypeError, match="must hold a transformers model, got Linear; pass the model itself"):
        zoomzero.shared_prefix(torch.nn.Linear(2, 2)).__enter__()
    absolute = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    with pytest.raises(ValueError, match=r"of a family among llama, .* got GPT2LMHeadModel of gpt2; run it without"):
        zoomzero.shared_prefix(absolute).__enter__()
    with pytest.raises(ValueError, match=r"a decoder with a head, .* got Qwen2Model of qwen2"):
        zoomzero.shared_prefix(text_model("qwen2").model).__enter__()


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([], [], "needs prompts and one list of completions per prompt, got 0 prompts"),
        ([[1, 2]], [[[3]], [[4]]], r"got 1 prompts and \[1, 1\] completions"),
        ([[1, 2]], [[]], r"got 1 prompts and \[0\] completions; pass the completions as a list of lists"),
        ([[]], [[[3]]], "a prompt must have at least one token, got none"),
    ],
)
def test_bad_prompts_and_completions(prompts: Any, completions: Any, message: str) -> None:
    with zoomzero.shared_prefix(text_model("qwen2")) as packed, pytest.raises(ValueError, match=message):
        packed.logps(prompts, completions)


def test_grids_without_tokens_are_refused() -> None:
    prompt = random_inputs(ZOOM)
    prompt = {**prompt, "input_ids": prompt["input_ids"][:, :4]}
    message = "every video needs its tokens in a row, got 1 grids and tokens for 0"
    with zoomzero.shared_prefix(random_model()) as packed, pytest.raises(ValueError, match=message):
        packed.logps([prompt], [[[3]]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "attention must be without dropout, got 0.1; set config.attention_dropout = 0.0"),
        ({"softcap": 30.0}, "plain softmax attention, got a layer with softcap"),
        ({"s_aux": torch.ones(2)}, "plain softmax attention, got a layer with s_aux"),
        ({"sliding_window": 6}, "fit into the layer's window of 6 tokens, got 7"),
    ],
)
def test_attention_that_packed_rows_do_not_know(options: dict[str, Any], message: str) -> None:
    query = torch.randn(1, 2, 9, 4)
    with pytest.raises(ValueError, match=f"shared prefixes: .*{message}"):
        packed_attention(query, query, query, PackedLengths([4], [[2, 3]]), **options)
    with pytest.raises(ValueError, match=f"shared prefixes: .*{message.replace('got 7', 'got 9')}"):
        group_step_attention(query[:, :, :3], query, query, None, **options)
    assert packed_attention(query, query, query, PackedLengths([4], [[2, 3]]), sliding_window=7).shape == (1, 9, 2, 4)


def test_the_attention_is_set_once() -> None:
    model = text_model("qwen2")
    assert [use_packed_attention(model) for _ in range(2)] == ["sdpa", "sdpa"]
    assert model.config._attn_implementation == "zoomzero_shared_prefix_sdpa"
