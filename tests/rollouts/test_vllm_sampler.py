"""vLLM as a sampler of rollouts: the policy's own distribution, before and after its weights changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.vllm_engine import import_vllm

from zoomzero import ZoomZero
from zoomzero.looks import PreparedPrompt, through_tower
from zoomzero.looks.rows import RowEncoder
from zoomzero.models.encoding import EncodedPrompt
from zoomzero.models.tokens import end_token_ids
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.rollouts.vllm import VllmSampler
from zoomzero.synthetic import make_clips, tiny_checkpoint
from zoomzero.training.packing import PackedForward

import_vllm()


@pytest.fixture(scope="module")
def engine() -> ZoomZero:
    return ZoomZero.from_pretrained(tiny_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def sampler(engine: ZoomZero) -> VllmSampler:
    return VllmSampler(tiny_checkpoint(), engine.model, max_length=512)


@pytest.fixture(scope="module")
def prepared(engine: ZoomZero, tmp_path_factory: pytest.TempPathFactory) -> list[PreparedPrompt]:
    clips = make_clips(tmp_path_factory.mktemp("clips"), 2, seed=12)
    encoder = RowEncoder(engine.processor, engine.model, freeze_vision=True, feature_bytes=1 << 24, frame_bytes=1 << 26)
    rows = [
        {"video": str(clip.path), "question": question.question, "options": question.options}
        for clip in clips
        for question in clip.questions
    ]
    found = encoder.prepare_coarse(rows)
    assert all(isinstance(prompt, PreparedPrompt) for prompt in found)
    return [prompt for prompt in found if isinstance(prompt, PreparedPrompt)]


@pytest.fixture
def prompts(engine: ZoomZero, prepared: list[PreparedPrompt]) -> list[EncodedPrompt]:
    return through_tower(engine.model, prepared)


def _options(engine: ZoomZero, **changes: Any) -> SamplingOptions:
    ends = end_token_ids(engine.model, engine.processor.tokenizer)
    return SamplingOptions(**{"max_new_tokens": 40, "eos_token_ids": ends, "pad_token_id": 0, **changes})


def test_samples_come_with_the_policys_own_log_probabilities(
    engine: ZoomZero, sampler: VllmSampler, prepared: list[PreparedPrompt], prompts: list[EncodedPrompt]
) -> None:
    """At a temperature, from packed rows with gradients as the loss computes them."""
    rollouts = sampler(prompts, _options(engine, num_generations=4, temperature=0.8), torch.Generator().manual_seed(1))
    assert rollouts.token_ids.shape == rollouts.mask.shape == rollouts.logps.shape
    assert len(rollouts.token_ids) == 16
    assert len({tuple(ids) for ids in rollouts.token_ids.tolist()}) > 8

    def at_head(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        logps = (torch.nn.functional.linear(hidden, head.weight) / 0.8).log_softmax(-1)
        return logps.gather(-1, rollouts.token_ids[..., None])[..., 0]

    ours = PackedForward(engine.model, engine.model)(prepared, rollouts.token_ids, rollouts.mask, at_head)
    assert float((ours - rollouts.logps).abs()[rollouts.mask].max()) < 1e-4
    ends = torch.isin(rollouts.token_ids, torch.tensor(end_token_ids(engine.model, engine.processor.tokenizer)))
    for row in range(16):
        length = int(rollouts.mask[row].sum())
        assert bool(rollouts.mask[row, :length].all())
        assert bool(ends[row, length - 1]) == bool(rollouts.stopped[row])
        assert bool((rollouts.token_ids[row, length:] == 0).all())
        assert bool((rollouts.logps[row, length:] == 0).all())


def test_a_seed_repeats_the_samples(engine: ZoomZero, sampler: VllmSampler, prompts: list[EncodedPrompt]) -> None:
    options = _options(engine, num_generations=3)
    first, second = (sampler(prompts, options, torch.Generator().manual_seed(5)) for _ in range(2))
    other = sampler(prompts, options, torch.Generator().manual_seed(6))
    assert torch.equal(first.token_ids, second.token_ids)
    assert first.token_ids.shape != other.token_ids.shape or not torch.equal(first.token_ids, other.token_ids)


def test_greedy_follows_the_weights(engine: ZoomZero, prompts: list[EncodedPrompt], tmp_path: Path) -> None:
    """After `load` the engine samples from the changed policy, with nothing kept of the earlier one."""
    sampler = VllmSampler(tiny_checkpoint(), engine.model, max_length=512)
    model = ZoomZero.from_pretrained(tiny_checkpoint(), device="cpu").model
    options = _options(engine, temperature=0.0, num_top_logps=3)
    before = sampler(prompts, options)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".visual." not in name:
                value.mul_(1 + 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    sampler.load(model)
    after, ours = sampler(prompts, options), generate(model, prompts, options)
    assert before.token_ids.shape != after.token_ids.shape or not torch.equal(before.token_ids, after.token_ids)
    assert torch.equal(after.token_ids, ours.token_ids)
    assert torch.equal(after.mask, ours.mask)
    assert torch.equal(after.stopped, ours.stopped)
    torch.testing.assert_close(after.logps, ours.logps, rtol=0, atol=1e-4)
    assert after.top_logps is not None
    assert ours.top_logps is not None
    torch.testing.assert_close(after.top_logps[after.mask], ours.top_logps[ours.mask], rtol=0, atol=1e-4)


def test_unusable_prompts_are_refused(engine: ZoomZero, sampler: VllmSampler, prompts: list[EncodedPrompt]) -> None:
    with pytest.raises(ValueError, match="VllmSampler: needs at least one prompt, got none"):
        sampler([], _options(engine))
    bare = EncodedPrompt(prompts[0].input_ids, prompts[0].position_ids, prompts[0].features)
    with pytest.raises(ValueError, match="must have one video with its grid, got 0; use prompts that the trainer"):
        sampler([bare], _options(engine))
