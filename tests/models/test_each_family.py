"""Every family answers and trains as transformers' own forward of it computes at the published positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_families import FAMILY_NAMES, save_small_checkpoint
from support.tiny_qwen import prepared_prompts
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero import ZoomZero, ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.inputs import load_processor, require_inputs_of
from zoomzero.models import load_model, mrope_positions
from zoomzero.models.encoding import encode_prompts
from zoomzero.models.forward import next_token_logps, prefill
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.synthetic import make_clips
from zoomzero.synthetic.clips import Clip
from zoomzero.training import collect, scoring
from zoomzero.training.packing import PackedForward

pytestmark = pytest.mark.parametrize("name", FAMILY_NAMES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return make_clips(tmp_path_factory.mktemp("clips"), 1, seed=6)[0]


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    return save_small_checkpoint(name, tmp_path / name)


@pytest.fixture
def engine(folder: Path) -> ZoomZero:
    return ZoomZero.from_pretrained(folder, device="cpu")


@pytest.fixture
def inputs(engine: ZoomZero, clip: Clip) -> list[dict[str, Tensor]]:
    """A coarse and a zoomed prompt, as the processor makes them."""
    question = clip.questions[0]
    return [
        dict(engine.processor(clip.path, question.question, question.options, spans=spans))
        for spans in (None, question.spans)
    ]


def _own_forward(model: PreTrainedModel, inputs: dict[str, Tensor], completion: list[int]) -> Any:
    """transformers' forward over prompt, pixels and completion in one row, at the published positions."""
    own = torch.tensor([completion], dtype=torch.long)
    row = torch.cat((inputs["input_ids"], own), dim=1)
    types = torch.cat((inputs["mm_token_type_ids"], torch.zeros_like(own)), dim=1)
    texts = {"input_ids": row, "mm_token_type_ids": types, "attention_mask": torch.ones_like(row)}
    visual = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw")}
    positions, _ = mrope_positions(model.config, {**inputs, **texts})
    return model(**texts, **visual, position_ids=positions[:, None], output_hidden_states=True)


@torch.no_grad()
def test_hidden_states_equal_transformers_own(engine: ZoomZero, folder: Path, inputs: list[dict[str, Tensor]]) -> None:
    theirs = load_model(folder, "cpu")
    for item in inputs:
        ours = prefill(engine.model, encode_prompts(engine.model, [item]), None)
        expected = _own_forward(theirs, item, [])
        torch.testing.assert_close(ours[0], expected.hidden_states[-1][0, -1], rtol=1e-5, atol=1e-5)
        logps = next_token_logps(engine.model, encode_prompts(engine.model, [item]))[0]
        torch.testing.assert_close(logps, expected.logits[0, -1].log_softmax(-1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_greedy_responses_equal_the_full_row(engine: ZoomZero, folder: Path, inputs: list[dict[str, Tensor]]) -> None:
    """Both prompts in one batch, so that the shorter one is padded."""
    theirs = load_model(folder, "cpu")
    options = SamplingOptions(10, (engine.processor.tokenizer.eos_token_id,), 0, temperature=0.0)
    rollouts = generate(engine.model, encode_prompts(engine.model, inputs), options)
    for row, item in enumerate(inputs):
        tokens = rollouts.token_ids[row, rollouts.mask[row]]
        logits = _own_forward(theirs, item, tokens.tolist()).logits[0, item["input_ids"].shape[1] - 1 : -1]
        logps = logits.log_softmax(-1)
        assert torch.equal(logps.argmax(-1), tokens)
        chosen = logps.gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(rollouts.logps[row, : len(tokens)], chosen, rtol=1e-5, atol=1e-5)


def test_packed_gradients_equal_the_full_rows(engine: ZoomZero, folder: Path, inputs: list[dict[str, Tensor]]) -> None:
    """Two groups of three completions, the vision tower trained too."""
    theirs, model = load_model(folder, "cpu"), engine.model
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 1, 7, 3, 7, 2])
    mask = torch.arange(7) < lengths[:, None]
    ids = torch.randint(20, 300, (6, 7), generator=generator) * mask
    weights = torch.randn(6, 7, generator=generator) * mask
    prompts = prepared_prompts(model, inputs)

    def weighted(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        return (
            torch.nn.functional.linear(hidden, head.weight).log_softmax(-1).gather(-1, ids[..., None])[..., 0] * weights
        ).sum()

    loss = PackedForward(model, model)(prompts, ids, mask, weighted)
    loss.backward()
    expected = torch.zeros(())
    for row, length in enumerate(lengths.tolist()):
        tokens = ids[row, :length]
        start = inputs[row // 3]["input_ids"].shape[1] - 1
        logps = _own_forward(theirs, inputs[row // 3], tokens.tolist()).logits[0, start:-1].log_softmax(-1)
        expected = expected + (logps.gather(-1, tokens[:, None])[:, 0] * weights[row, :length]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for (name, ours), (_, own) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        scale = float(own.grad.abs().max())
        assert scale > 0 or "k_proj.bias" in name or "qkv.bias" in name, name
        torch.testing.assert_close(ours.grad, own.grad, rtol=0, atol=1e-4 * scale + 1e-6, msg=lambda m, n=name: n + m)


def test_questions_are_answered(engine: ZoomZero, clip: Clip) -> None:
    question = clip.questions[0]
    answer = engine.answer(clip.path, question.question, question.options, max_new_tokens=8)
    assert [look.name for look in answer.passes] == ["coarse", "zoom"]
    assert answer.letter in ("A", "B", "C", "D")
    assert 0 < answer.confidence <= 1


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_it_trains_and_the_checkpoint_answers(
    folder: Path, clip: Clip, tmp_path: Path, freeze_vision: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random rewards: a random model earns none, and equal rewards train nothing."""
    real = scoring.score

    def varied(*args: Any, **options: Any) -> scoring.Scores:
        scores = real(*args, **options)
        return scoring.Scores(torch.rand(scores.rewards.shape), scores.spans, scores.num_zoom_prompts)

    monkeypatch.setattr(collect, "score", varied)
    rows = [
        {"video": str(clip.path), "question": q.question, "options": list(q.options), "answer": q.answer,
         "spans": [list(span) for span in q.spans]} for q in clip.questions
    ]  # fmt: skip
    out = tmp_path / "trained"
    config = ZoomZeroConfig(
        output_dir=str(out), use_cpu=True, max_steps=2, per_device_train_batch_size=8, num_generations=4,
        max_completion_length=8, learning_rate=1e-3, report_to=[], freeze_vision=freeze_vision, save_strategy="no",
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = ZoomZeroTrainer(str(folder), config, rows)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    trainer.save_model()
    for part, value in trainer.model.named_parameters():
        assert torch.isfinite(value).all(), part
        moved = not torch.equal(value, before[part])
        assert moved == (not freeze_vision or ".visual." not in part), part
    answer = ZoomZero.from_pretrained(out, device="cpu").answer(
        clip.path, rows[0]["question"], rows[0]["options"], max_new_tokens=8
    )
    assert len(answer.passes) == 2


def test_inputs_of_another_family_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    other = "qwen2_5_vl" if name == "qwen3_vl" else "qwen3_vl"
    processor = load_processor(save_small_checkpoint(other, tmp_path / "other"))
    with pytest.raises(ValueError, match=rf"must make inputs of the model \({name}: .* got VisionGeometry"):
        require_inputs_of(load_model(folder, "cpu"), processor)
    with pytest.raises(ValueError, match="use load_processor with the model's own checkpoint"):
        ZoomZero(load_model(folder, "cpu"), processor)
