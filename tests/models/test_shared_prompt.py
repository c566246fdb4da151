"""Group-shared generation gives what a plain forward over prompt + response gives, token by token."""

from typing import Any

import pytest
import torch
from support.tiny_qwen import (
    COARSE,
    EOS_TOKEN,
    PAD_TOKEN,
    SHORT,
    VIDEO_TOKEN,
    VOCAB_SIZE,
    ZOOM,
    PromptShape,
    full_row_logits,
    random_inputs,
    random_model,
)
from support.waits import WAITS, HiddenWaits, is_sent
from torch.utils._python_dispatch import TorchDispatchMode

from zoomzero.models.encoding import encode_prompts
from zoomzero.models.forward import next_token_logps
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import STEPS_PER_LOOK, generate


def _options(**changes: object) -> SamplingOptions:
    return SamplingOptions(
        **{"max_new_tokens": 12, "eos_token_ids": (EOS_TOKEN,), "pad_token_id": PAD_TOKEN, **changes}
    )


# kv_heads 1: grouped queries, folded over their keys; eager: whatever attention the model came with.
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


class StepsSeen(TorchDispatchMode):
    """Every op between two calls of the language model: its name, and the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[tuple[str, list[torch.Size]]]] = []
        self.addresses: list[list[int]] = []
        self.waits = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.steps:
            self.waits += name in WAITS
            self.copies += is_sent(name, kwargs)
            self.steps[-1].append((name, [x.shape for x in (*args, result) if isinstance(x, torch.Tensor)]))
        return result

    def begin(self, _: torch.nn.Module, __: Any, options: dict[str, Any]) -> None:
        """Hook in front of the language model; the prefill, which has no `group_step`, is no step."""
        if "group_step" in options:
            tensors = [options[name] for name in ("input_ids", "position_ids", "attention_mask")]
            tensors += [x for layer in options["past_key_values"].layers for x in (layer.keys, layer.values)]
            self.addresses.append([tensor.data_ptr() for tensor in tensors])
            self.steps.append([])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_steps_are_all_alike_and_the_host_does_not_wait(temperature: float) -> None:
    """So that a CUDA graph could capture a step: 40 of them, at most 3 waits and copies from the host in all."""
    model = random_model(kv_heads=1)
    use_segment_attention(model)
    prompts = encode_prompts(model, [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM))])
    never = VOCAB_SIZE  # an end token that is no token
    options = _options(max_new_tokens=41, num_generations=4, temperature=temperature, eos_token_ids=(never,))
    seen = StepsSeen()
    model.model.language_model.register_forward_pre_hook(seen.begin, with_kwargs=True)
    hidden = HiddenWaits()

    def count(*_: Any) -> None:
        hidden.counting = 0 < len(seen.steps) < 40  # behind the last comes the result

    model.model.language_model.register_forward_pre_hook(count)
    with seen, hidden:
        generate(model, prompts, options, torch.Generator().manual_seed(0))
    assert len(seen.steps) == 40
    assert seen.waits + seen.copies + len(hidden.found) <= 3
    assert len({tuple(addresses) for addresses in seen.addresses}) == 1
    looks = {"any", "_local_scalar_dense", "is_nonzero"}
    plain = [[op for op in step if op[0] not in looks] for step in seen.steps[:-1]]  # behind the last comes the result
    assert all(step == plain[0] for step in plain)
    assert len(plain[0]) > 100


def test_keys_are_not_repeated() -> None:
    """Three query heads over one key head: no tensor of a step is larger than the keys of one head."""
    model = random_model(kv_heads=1)
    prompts = encode_prompts(model, [random_inputs(COARSE)])
    seen = StepsSeen()
    model.model.language_model.register_forward_pre_hook(seen.begin, with_kwargs=True)
    with seen:
        generate(model, prompts, _options(max_new_tokens=3, num_generations=2))
    keys = (prompts[0].input_ids.numel() + 2 * 2) * 32  # one head of 32
    sizes = [shape.numel() for _, shapes in seen.steps[0] for shape in shapes if shape[:1] == (1,)]
    assert max(sizes) == keys


def test_responses_that_end_between_two_looks_are_cut() -> None:
    """What is computed in vain, until the host looks again, is not in the result."""
    model = random_model()
    prompts = encode_prompts(model, [random_inputs(SHORT)])
    first = generate(model, prompts, _options(temperature=0.0)).token_ids[0]
    ends = int(first[2])
    calls: list[int] = []
    model.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    rollouts = generate(model, prompts, _options(temperature=0.0, max_new_tokens=60, eos_token_ids=(ends,)))
    length = first.tolist().index(ends) + 1
    assert rollouts.token_ids.tolist() == [first[:length].tolist()]
    assert rollouts.stopped.tolist() == [True]
    assert len(calls) <= STEPS_PER_LOOK


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="generate: needs at least one prompt, got none"):
        generate(random_model(), [], _options())
    with pytest.raises(ValueError, match="next_token_logps: needs at least one prompt, got none"):
        next_token_logps(random_model(), [])
