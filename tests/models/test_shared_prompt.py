"""Group-shared generation gives what a plain forward over prompt + response gives, token by token."""

import pytest
import torch
from support.tiny_qwen import (
    COARSE,
    EOS_TOKEN,
    PAD_TOKEN,
    SHORT,
    VIDEO_TOKEN,
    ZOOM,
    PromptShape,
    full_row_logits,
    random_inputs,
    random_model,
)

from zoomzero.models.encoding import encode_prompts
from zoomzero.models.forward import additive_mask, next_token_logps
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate


def _options(**changes: object) -> SamplingOptions:
    return SamplingOptions(
        **{"max_new_tokens": 12, "eos_token_ids": (EOS_TOKEN,), "pad_token_id": PAD_TOKEN, **changes}
    )


# kv_heads 1: grouped queries, whose keys are repeated; eager: the additive mask.
@pytest.mark.parametrize(("kv_heads", "attention"), [(3, "sdpa"), (1, "sdpa"), (3, "eager")])
def test_greedy_equals_the_full_row(kv_heads: int, attention: str) -> None:
    model = random_model(kv_heads=kv_heads, attn_implementation=attention)
    use_segment_attention(model)
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM, SHORT))]
    rollouts = generate(model, encode_prompts(model, inputs), _options(temperature=0.0, num_top_logps=5))
    for row, item in enumerate(inputs):
        tokens = rollouts.token_ids[row, rollouts.mask[row]]
        expected = full_row_logits(model, item, tokens).log_softmax(-1)
        assert torch.equal(expected.argmax(-1), tokens)
        chosen = expected.gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(rollouts.logps[row, : len(tokens)], chosen, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(
            rollouts.top_logps[row, : len(tokens)], expected.topk(5).values, rtol=1e-5, atol=2e-6
        )


def test_greedy_equals_model_generate_where_rope_deltas_are_right() -> None:
    """Two temporal patches only: the text after the video has passed its positions, so rope_deltas holds."""
    model = random_model(seed=3)
    item = random_inputs(PromptShape((2, 4, 4), 1.0, 10), 5)
    rollouts = generate(model, encode_prompts(model, [item]), _options(temperature=0.0))
    expected = model.generate(
        **item, max_new_tokens=12, do_sample=False, eos_token_id=EOS_TOKEN, pad_token_id=PAD_TOKEN
    )
    expected = expected[0, item["input_ids"].shape[1] :]
    assert torch.equal(rollouts.token_ids[0, : len(expected)], expected)


def test_sampled_logps_are_those_of_the_full_row_at_the_temperature() -> None:
    model = random_model()
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM))]
    prompts = encode_prompts(model, inputs)
    options = _options(num_generations=4, temperature=0.7)
    rollouts = generate(model, prompts, options, torch.Generator().manual_seed(2))
    checked = 0
    for row in range(8):
        tokens = rollouts.token_ids[row, rollouts.mask[row]]
        if bool((tokens == VIDEO_TOKEN).any()):  # transformers' own forward would look for more frames
            continue
        logps = (full_row_logits(model, inputs[row // 4], tokens) / 0.7).log_softmax(-1)
        torch.testing.assert_close(
            rollouts.logps[row, : len(tokens)], logps.gather(-1, tokens[:, None])[:, 0], rtol=1e-5, atol=2e-6
        )
        checked += 1
    assert checked >= 4
    assert len({tuple(ids) for ids in rollouts.token_ids.tolist()}) > 4


def test_sampling_follows_the_distribution() -> None:
    model = random_model()
    (prompt,) = encode_prompts(model, [random_inputs(ZOOM)])
    rollouts = generate(
        model, [prompt], _options(num_generations=4000, max_new_tokens=1), torch.Generator().manual_seed(0)
    )
    frequency = rollouts.token_ids[:, 0].bincount(minlength=100) / 4000
    probability = next_token_logps(model, [prompt])[0].exp()
    # Three standard deviations of a binomial frequency, on the largest probability.
    assert float((frequency - probability).abs().max()) < 3 * (0.25 / 4000) ** 0.5


def test_rows_stop_on_their_own_and_are_padded() -> None:
    model = random_model()
    prompts = encode_prompts(model, [random_inputs(SHORT)])
    stops = tuple(range(1, 12))  # many end tokens, so that rows end at different steps
    options = _options(num_generations=32, eos_token_ids=stops, max_new_tokens=20)
    rollouts = generate(model, prompts, options, torch.Generator().manual_seed(1))
    lengths = rollouts.mask.sum(1)
    assert len(lengths.unique()) > 3
    ends = torch.isin(rollouts.token_ids, torch.tensor(stops)) & rollouts.mask
    for row in range(32):
        length = int(lengths[row])
        assert not bool(ends[row, : length - 1].any())
        assert bool(ends[row, length - 1]) == bool(rollouts.stopped[row])
        assert bool(rollouts.stopped[row]) or length == 20
        assert bool((rollouts.token_ids[row, length:] == PAD_TOKEN).all())
        assert bool((rollouts.logps[row, length:] == 0).all())


def test_a_seed_reproduces_the_samples_and_the_model_keeps_its_mode() -> None:
    model = random_model().train()
    prompts = encode_prompts(model, [random_inputs(ZOOM)])
    options = _options(num_generations=3)
    first = generate(model, prompts, options, torch.Generator().manual_seed(7))
    second = generate(model, prompts, options, torch.Generator().manual_seed(7))
    assert torch.equal(first.token_ids, second.token_ids)
    assert model.training


def test_next_token_logps_of_prompts_of_different_lengths() -> None:
    model = random_model()
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM, SHORT, ZOOM))]
    logps = next_token_logps(model, encode_prompts(model, inputs))
    for row, item in enumerate(inputs):
        expected = full_row_logits(model, item, torch.tensor([5])).log_softmax(-1)[0]
        torch.testing.assert_close(logps[row], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_generations": -1}, "num_generations must be at least 1, got -1"),
        ({"temperature": -0.5}, "temperature must be >= 0, got -0.5"),
        ({"temperature": float("nan")}, "temperature must be >= 0, got nan"),
        ({"eos_token_ids": ()}, "must name at least one token, got none"),
    ],
)
def test_sampling_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _options(**changes)


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="generate: needs at least one prompt, got none"):
        generate(random_model(), [], _options())
    with pytest.raises(ValueError, match="next_token_logps: needs at least one prompt, got none"):
        next_token_logps(random_model(), [])


def test_attention_without_a_mask_is_refused() -> None:
    model = random_model()
    model.config.text_config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ValueError, match=r"4-D mask \(sdpa or eager\), got 'flex_attention'"):
        additive_mask(model, torch.ones(1, 1, 1, 1, dtype=torch.bool))
