"""Vision attention in one call equals transformers' loop; prompts are encoded as the model's own forward sees them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ragged_flash import ragged_flash_in_plain_torch
from support.shared_prefix_models import vision_model
from support.tiny_qwen import COARSE, EOS_TOKEN, SHORT, VIDEO_TOKEN, ZOOM, PromptShape, random_inputs, random_model
from support.waits import HiddenWaits, Waits
from transformers import Qwen2Config, Qwen2ForCausalLM

from zoomzero.models import encoding, mrope_positions, segment_attention
from zoomzero.models.encoding import encode_prompts, language_inputs, video_features
from zoomzero.models.families import require_supported
from zoomzero.models.segment_attention import SEGMENT_ATTENTION, use_segment_attention
from zoomzero.models.segments import segments_of_run


def _videos(shapes: list[PromptShape]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate(shapes)]
    return [(item["pixel_values_videos"], item["video_grid_thw"]) for item in inputs]


def waits_in_blocks(tower: torch.nn.Module, run: Callable[[], object]) -> list[str]:
    """What makes the host wait for the device, or send it something, inside a tower's layers."""
    ops, methods = Waits(), HiddenWaits()

    def count(counting: bool) -> None:
        ops.counting = methods.counting = counting

    handles = [block.register_forward_pre_hook(lambda *_: count(True)) for block in tower.blocks]
    handles += [block.register_forward_hook(lambda *_: count(False)) for block in tower.blocks]
    with ops, methods, torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    assert ops.ops > 20
    return ops.found + methods.found


@pytest.fixture(params=["batched", "varlen"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The form for the CPU, and torch's ragged attention with its CUDA kernels in plain torch."""
    with ragged_flash_in_plain_torch():
        if request.param == "varlen":
            monkeypatch.setattr(segment_attention, "_varlen_takes", lambda *_: True)
        yield request.param


# Equal segments (COARSE, ZOOM), windows cut at an edge (SHORT), and segments of several lengths in one call.
@pytest.mark.parametrize("shapes", [[COARSE], [ZOOM], [SHORT], [COARSE, SHORT, ZOOM]])
def test_segment_attention_equals_the_loop(shapes: list[PromptShape], form: str) -> None:
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
        torch.testing.assert_close(one, other, rtol=1e-5, atol=5e-6)
    for name, parameter in model.model.visual.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-4 * float(grads[name].abs().max()))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_no_layer_of_the_tower_waits_for_the_device(family: str, form: str) -> None:
    """Lengths are known on the host, once per run of the tower."""
    model = vision_model(family).eval()
    use_segment_attention(model)
    tower, videos = model.model.visual, _videos([COARSE, SHORT, ZOOM])
    assert waits_in_blocks(tower, lambda: video_features(model, videos)) == []
    # the count can fail: without the lengths from the host every layer asks the device
    pixels, grids = (torch.cat(parts) for parts in zip(*videos, strict=True))
    assert waits_in_blocks(tower, lambda: tower(pixels, grid_thw=grids)) == ["tolist"] * len(tower.blocks)


@settings(max_examples=60, deadline=None)
@given(
    grids=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)).map(lambda g: (g[0], 2 * g[1], 2 * g[2])),
        min_size=1, max_size=3,
    )
)  # fmt: skip
def test_segments_are_those_of_transformers(grids: list[tuple[int, int, int]]) -> None:
    vision_utils = pytest.importorskip("transformers.vision_utils")
    config, grid = random_model().model.visual.config, torch.tensor(grids)
    ways = segments_of_run(config, grid, torch.device("cpu"))
    size = (config.spatial_merge_size, config.window_size, config.patch_size)
    for starts in (vision_utils.get_vision_cu_seqlens(grid), vision_utils.get_vision_window_index(grid, *size)[1]):
        lengths = starts.diff().tolist()
        segments = ways[len(lengths)]
        assert segments.lengths == lengths
        assert segments.longest == max(lengths)
        assert torch.equal(segments.gather[segments.scatter], torch.arange(sum(lengths)))
        number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[segments.gather]
        expected = [length for count, length in segments.runs for _ in range(count)]
        assert number.unique_consecutive(return_counts=True)[1].tolist() == expected


def test_the_tower_runs_on_so_many_patches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three videos of 128 (COARSE, ZOOM) and 48 patches (SHORT): two runs, and the features of one."""
    model, videos = random_model(), _videos([COARSE, SHORT, ZOOM])
    whole = video_features(model, videos)
    calls: list[int] = []
    model.model.visual.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))
    monkeypatch.setattr(encoding, "PATCHES_PER_RUN", 180)
    for one, other in zip(video_features(model, videos), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert calls == [176, 128]


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
