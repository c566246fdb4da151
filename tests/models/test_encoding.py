"""Vision attention in one call equals transformers' loop; prompts are encoded as the model's own forward sees them."""

import pytest
import torch
from support.tiny_qwen import COARSE, EOS_TOKEN, SHORT, VIDEO_TOKEN, ZOOM, PromptShape, random_inputs, random_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from zoomzero.models import mrope_positions
from zoomzero.models.encoding import encode_prompts, language_inputs, video_features
from zoomzero.models.families import require_supported
from zoomzero.models.segment_attention import SEGMENT_ATTENTION, use_segment_attention


def _videos(shapes: list[PromptShape]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate(shapes)]
    return [(item["pixel_values_videos"], item["video_grid_thw"]) for item in inputs]


# Equal segments (COARSE, ZOOM), windows cut at an edge (SHORT), and segments of several lengths in one call.
@pytest.mark.parametrize("shapes", [[COARSE], [ZOOM], [SHORT], [COARSE, SHORT, ZOOM]])
def test_segment_attention_equals_the_loop(shapes: list[PromptShape]) -> None:
    model, videos = random_model(), _videos(shapes)
    assert model.config.vision_config._attn_implementation == "sdpa"
    looped = video_features(model, videos)
    torch.cat(looped).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model.model.visual.named_parameters()}
    model.zero_grad()

    use_segment_attention(model)
    assert model.model.visual.config._attn_implementation == SEGMENT_ATTENTION
    assert model.model.language_model.config._attn_implementation == "sdpa"
    batched = video_features(model, videos)
    torch.cat(batched).square().sum().backward()

    for one, other in zip(batched, looped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for name, parameter in model.model.visual.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-4 * float(grads[name].abs().max()))


def test_segment_attention_makes_one_call_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = random_model(), []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    video_features(model, _videos([COARSE]))
    looped = len(calls)
    use_segment_attention(model)
    calls.clear()
    video_features(model, _videos([COARSE]))
    assert (looped, len(calls)) == (64, 2)


def test_encoded_prompts_equal_the_models_own_embedding() -> None:
    model = random_model()
    inputs = [random_inputs(COARSE, 1), random_inputs(ZOOM, 2)]
    prompts = encode_prompts(model, inputs)
    for item, prompt in zip(inputs, prompts, strict=True):
        expected = model.model.get_video_features(item["pixel_values_videos"], item["video_grid_thw"]).pooler_output[0]
        torch.testing.assert_close(prompt.features, expected, rtol=1e-6, atol=1e-6)
        positions, following = mrope_positions(model.config, item)
        assert torch.equal(prompt.position_ids, positions)
        assert prompt.next_position == following


def test_no_videos_gives_no_features() -> None:
    assert video_features(random_model(), []) == []


def test_features_of_other_frames_are_refused() -> None:
    model = random_model()
    input_ids = torch.tensor([[VIDEO_TOKEN, VIDEO_TOKEN, EOS_TOKEN]])
    with pytest.raises(ValueError, match="hold 2 video placeholders, got 3 video features"):
        language_inputs(model, input_ids, input_ids == VIDEO_TOKEN, [torch.zeros(3, 96)])


def test_other_models_are_refused() -> None:
    config = Qwen2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(
        TypeError, match=r"must be one of transformers' .*Qwen3VLForConditionalGeneration.* got Qwen2ForCausalLM"
    ):
        require_supported(Qwen2ForCausalLM(config))
