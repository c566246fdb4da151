"""ZoomZeroTrainer on real clips and a random tiny model: prompts and rewards."""

from typing import Any

import pytest
import torch
from support.plain_rows import full_row_logits
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.inputs import VideoInputs
from zoomzero.looks import encoder as prompts_module
from zoomzero.looks.rows import RowEncoder
from zoomzero.responses import parse
from zoomzero.training import scoring
from zoomzero.training.scoring import score, valid_spans

Row = dict[str, Any]


def _encoder(processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, **changes: Any) -> RowEncoder:
    options = {"freeze_vision": True, "feature_bytes": 1 << 24, "frame_bytes": 1 << 26, **changes}
    return RowEncoder(processor, model, **options)


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_prompts_equal_the_processors(
    processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], freeze_vision: bool
) -> None:
    encoder, spans = _encoder(processor, model, freeze_vision=freeze_vision), [(4.0, 9.5)]
    coarse, zoomed = encoder.prepare([encoder.coarse_look(rows[0]), encoder.zoom_look(rows[1], spans)])
    for prompt, row, zoom in ((coarse, rows[0], None), (zoomed, rows[1], spans)):
        expected = processor(row["video"], row["question"], row["options"], spans=zoom)
        assert torch.equal(prompt.input_ids, expected["input_ids"][0])
        visual = expected["pixel_values_videos"]
        if freeze_vision:
            visual = model.model.visual(visual, grid_thw=expected["video_grid_thw"]).pooler_output
        torch.testing.assert_close(prompt.visual, visual, rtol=1e-5, atol=1e-5)


def test_frozen_features_are_computed_once(
    processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, calls = _encoder(processor, model), []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    # Two questions on the same clip share its frames; a second visit takes them from the cache.
    assert rows[0]["video"] == rows[1]["video"]
    first = encoder.prepare([encoder.coarse_look(rows[0]), encoder.coarse_look(rows[1])])
    second = encoder.prepare([encoder.coarse_look(rows[1])])
    assert len(calls) == 1
    assert first[0].visual is first[1].visual is second[0].visual


def test_large_batches_of_frames_are_encoded_in_several_runs(
    processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "PATCHES_PER_RUN", 200)  # a look at these clips is 128 patches
    encoder, sizes = _encoder(processor, model), []
    model.model.visual.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    looks = [encoder.zoom_look(rows[0], [(start, start + 2.0)]) for start in (0.0, 8.0, 16.0, 24.0, 28.0)]
    together = encoder.prepare(looks)
    assert sizes == [256, 256, 128]
    for prompt, look in zip(together, looks, strict=True):
        (alone,) = _encoder(processor, model).prepare([look])
        torch.testing.assert_close(prompt.visual, alone.visual, rtol=1e-5, atol=1e-5)


def _response(letter: str, spans: str) -> str:
    return f"<think>a <time>(1, 2)</time></think>\n<answer>{letter}</answer>\n<glue>{spans}</glue>"


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ("[(3, 5), (4, 8)]", [(3.0, 8.0)]),
        ("[(30, 99)]", [(30.0, 32.0)]),
        ("[(40, 50)]", []),
        ("[(32, 32)]", []),
        ("[(7, 7)]", [(7.0, 7.0)]),
        ("nonsense", []),
    ],
)
def test_valid_spans(spans: str, expected: list[tuple[float, float]]) -> None:
    assert valid_spans(parse(_response("A", spans)), 32.0) == expected


def test_rewards_and_zoom_pass(
    processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, row = _encoder(processor, model), rows[0]
    start, end = row["spans"][0]
    right = f"[({start}, {end})]"
    texts = [_response(row["answer"], right), _response("F", right), _response("F", "[(40, 50)]"), "no tags"]
    asked: list[tuple[Tensor, list[int]]] = []
    real = scoring.next_token_logps
    monkeypatch.setattr(
        scoring,
        "next_token_logps",
        lambda scorer, prompts, forward_tokens: (
            asked.append((real(scorer, prompts), [len(p.input_ids) for p in prompts])) or asked[-1][0]
        ),
    )
    scores = score(encoder, model, [row] * 4, texts, max_tokens=4096)

    # Equal spans are answered once; the two responses without a span share the look at the whole video.
    assert scores.num_zoom_prompts == 2
    assert scores.spans == [[(start, end)], [(start, end)], [], []]
    assert scores.rewards[:, 0].tolist() == [1, 1, 1, 0]
    assert scores.rewards[:, 2].tolist() == [1, 1, 0, 0]
    assert scores.rewards[:, 3].tolist() == [1, 0, 0, 0]

    # The same answers as a plain forward over the processor's zoom prompt.
    for index, spans in ((0, [(start, end)]), (2, [])):
        inputs = processor(row["video"], row["question"], row["options"], spans=spans)
        token = full_row_logits(model, inputs, torch.tensor([0]))[0].argmax()
        assert int(asked[0][0][min(index, 1)].argmax()) == int(token)
        assert scores.rewards[index, 1] == float(processor.tokenizer.decode([token]).strip() == row["answer"])


def test_a_right_zoomed_answer_is_rewarded(
    processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _encoder(processor, model)
    answers = iter([rows[0]["answer"], "", f"({rows[0]['answer']})"])

    def answer(scorer: Any, prompts: list[Any], forward_tokens: int) -> Tensor:
        ids = processor.tokenizer(next(answers) or " ", add_special_tokens=False).input_ids
        logps = torch.full((len(prompts), len(processor.tokenizer)), -9.0)
        logps[:, ids[0]] = 0.0
        return logps

    monkeypatch.setattr(scoring, "next_token_logps", answer)
    texts = [_response("F", f"[({start}, {start + 3})]") for start in (1, 8, 20)]
    scores = score(encoder, model, [rows[0]] * 3, texts, max_tokens=1)
    assert scores.rewards[:, 1].tolist() == [1, 0, 1]


def test_without_a_scorer_nothing_is_zoomed(
    processor: VideoInputs, model: Qwen2_5_VLForConditionalGeneration, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "next_token_logps", None)
    scores = score(_encoder(processor, model), None, rows[:1], [_response("A", "[(1, 2)]")], max_tokens=4096)
    assert scores.num_zoom_prompts == 0
    assert float(scores.rewards[0, 1]) == 0.0
