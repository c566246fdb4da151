"""A packed group gives the log-probabilities and gradients of the unpacked rows."""

from collections.abc import Sequence

import pytest
import torch
from support.tiny_qwen import (
    COARSE,
    SHORT,
    VIDEO_TOKEN,
    ZOOM,
    full_row_logits,
    prepared_prompts,
    random_inputs,
    random_model,
)
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration as Model

from zoomzero.models.encoding import encode_prompts
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.training.packing import PackedForward, pack_groups


def _logps(model: Model, inputs: Sequence[dict[str, Tensor]], token_ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities [P*G, T] of the completions from packed rows, by plain torch at the head."""

    def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
        logps = torch.nn.functional.linear(hidden, head.weight).log_softmax(-1)
        return logps.gather(-1, token_ids[..., None])[..., 0]

    return PackedForward(model, model)(prepared_prompts(model, inputs), token_ids, mask, at_head)


def _hidden(model: Model, inputs: Sequence[dict[str, Tensor]], token_ids: Tensor, mask: Tensor) -> Tensor:
    return PackedForward(model, model)(prepared_prompts(model, inputs), token_ids, mask, lambda _, hidden: hidden)


def _completions(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(2, 90, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return token_ids * mask, mask


# Completions of one token and of none, prompts of three lengths in one batch, grouped heads; whatever attention the
# model came with, and whether or not backward runs its layers again.
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen_tower", [False, True])
def test_packed_equals_unpacked_in_logps_and_all_gradients(
    attention: str, checkpointing: bool, frozen_tower: bool
) -> None:
    model = random_model(kv_heads=1, attn_implementation=attention)
    use_segment_attention(model)
    model.model.visual.requires_grad_(not frozen_tower)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM, SHORT))]
    lengths = [9, 1, 12, 0, 5, 7, 12, 3, 2]
    token_ids, mask = _completions(lengths)
    weights = torch.randn(token_ids.shape, generator=torch.Generator().manual_seed(1)) * mask

    logps = _logps(model, inputs, token_ids, mask)
    (logps * weights).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    packed_grads = {name: parameter.grad.clone() for name, parameter in trained.items()}
    model.zero_grad()

    total = torch.zeros(())
    for row, length in enumerate(lengths):
        tokens = token_ids[row, :length]
        if not length:
            continue
        expected = full_row_logits(model, inputs[row // 3], tokens).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logps[row, :length], expected, rtol=1e-5, atol=2e-6)
        total = total + (expected * weights[row, :length]).sum()
    total.backward()
    for name, parameter in trained.items():
        scale = float(parameter.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            packed_grads[name], parameter.grad, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_prompts_are_in_the_row_once_and_nothing_is_padded() -> None:
    model = random_model()
    prompts = encode_prompts(model, [random_inputs(COARSE), random_inputs(ZOOM)])
    token_ids, mask = _completions([20] * 8 + [3] * 8)
    packed = pack_groups(prompts, token_ids, mask, video_token_id=VIDEO_TOKEN)
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    assert packed.num_tokens == sum(lengths) + 8 * 19 + 8 * 2  # last tokens predict nothing
    assert packed.lengths == (lengths, [[19] * 8, [2] * 8])


def test_no_mask_of_all_pairs_reaches_a_layer() -> None:
    model = random_model()
    masks: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    layer.register_forward_pre_hook(lambda _, __, options: masks.append(options["attention_mask"]), with_kwargs=True)
    _hidden(model, [random_inputs(COARSE)], *_completions([20] * 8))
    assert [mask.numel() for mask in masks] == [1]


def test_a_sampled_video_placeholder_is_text() -> None:
    model = random_model()
    prompts = encode_prompts(model, [random_inputs(ZOOM)])
    token_ids, mask = _completions([6, 6])
    token_ids[0, 2] = VIDEO_TOKEN
    packed = pack_groups(prompts, token_ids, mask, video_token_id=VIDEO_TOKEN)
    assert int(packed.is_video.sum()) == prompts[0].features.shape[0]
    assert bool(_hidden(model, [random_inputs(ZOOM)], token_ids, mask).isfinite().all())


def test_all_masked_completions_are_finite() -> None:
    model = random_model()
    nothing = torch.zeros(3, 4, dtype=torch.long)
    hidden = _hidden(model, [random_inputs(ZOOM)], nothing, nothing.bool())
    assert hidden.shape == (3, 4, 96)
    assert bool(hidden.isfinite().all())


def test_wrong_groups_and_masks_are_refused() -> None:
    model = random_model()
    prompts = encode_prompts(model, [random_inputs(ZOOM), random_inputs(SHORT)])
    token_ids, mask = _completions([3, 3, 3])
    with pytest.raises(ValueError, match="equal groups, got 3 completions for 2 prompts"):
        pack_groups(prompts, token_ids, mask, video_token_id=VIDEO_TOKEN)
    with pytest.raises(ValueError, match="mask with a gap"):
        pack_groups(prompts[:1], token_ids, mask.index_fill(1, torch.tensor([1]), False), video_token_id=VIDEO_TOKEN)


@pytest.mark.cuda
def test_packed_on_the_gpu_equals_the_cpu() -> None:
    model = random_model()
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, SHORT))]
    token_ids, mask = _completions([9, 1, 12, 4])

    def logps(device: str) -> torch.Tensor:
        model.to(device)
        moved = [{name: tensor.to(device) for name, tensor in item.items()} for item in inputs]
        found = _logps(model, moved, token_ids.to(device), mask.to(device))
        return (found * mask.to(device)).detach().cpu()

    torch.testing.assert_close(logps("cuda"), logps("cpu"), rtol=1e-3, atol=1e-3)
