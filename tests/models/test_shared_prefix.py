"""Inside `shared_prefix` a model gives the hidden states, log-probabilities and gradients that it gives without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from support.tiny_qwen import COARSE, SHORT, ZOOM, random_inputs, random_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import zoomzero
from zoomzero.models.packed_attention import (
    PackedLengths,
    group_step_attention,
    packed_attention,
    use_packed_attention,
)

VOCAB, PAD, IMAGE, VIDEO = 90, 0, 93, 92
SIZES = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "initializer_range": 0.1, "pad_token_id": PAD,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 2, 2]}
MARKS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 94, "vision_end_token_id": 95}
TEXT_MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def text_model(family: str, attention: str = "sdpa", **options: Any) -> PreTrainedModel:
    model_class, config_class = TEXT_MODELS[family]
    config = config_class(**{**SIZES, "head_dim": 12, **options})
    config._attn_implementation = attention
    torch.manual_seed(0)
    return model_class(config)


def vision_model(family: str) -> PreTrainedModel:
    """Patches of 8x8x2 pixels, two by two a token."""
    vision = {
        "depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config={**SIZES, "rope_parameters": ROPE}, vision_config=vision, **MARKS)
        return Qwen2VLForConditionalGeneration(config)
    vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "deepstack_visual_indexes": [0]}
    vision |= {"num_position_embeddings": 64}
    text = {**SIZES, "head_dim": 12, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **MARKS))


def numbers(count: int, seed: int) -> list[int]:
    return torch.randint(2, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def padded(prompts: list[list[int]], completions: list[list[int]]) -> dict[str, Tensor]:
    """As TRL holds rows: prompts padded on the left, completions on the right."""
    width, steps = max(map(len, prompts)), max(map(len, completions))
    ids, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        left, right = [PAD] * (width - len(prompt)), [PAD] * (steps - len(completion))
        ids.append([*left, *prompt, *completion, *right])
        mask.append([*([0] * len(left)), *([1] * (len(prompt) + len(completion))), *([0] * len(right))])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def text_rows() -> dict[str, Tensor]:
    """Two prompts of unequal length with three and two completions, in mixed order, and a row of its own."""
    first, second = [3, 3, *numbers(30, 0)], [3, 3, *numbers(21, 1)]
    prompts = [second, first, first, numbers(9, 2), second, first]
    return padded(prompts, [numbers(count, 10 + count) for count in (4, 7, 1, 3, 6, 5)])


def visual_rows(family: str) -> dict[str, Tensor]:
    """Two prompts of the same words about two images, the first with a video too; two completions each, mixed.

    Qwen3-VL has a block per frame, behind its time.
    """
    generator = torch.Generator().manual_seed(0)
    image, video = torch.tensor([1, 4, 6]), torch.tensor([3, 4, 4])
    ahead = [5, 6, 94, *[IMAGE] * 6, 95, 7]
    blocks = [[8, 94, *[VIDEO] * 4, 95]] * 3 if family == "qwen3_vl" else [[94, *[VIDEO] * 12, 95]]
    with_video = [*ahead, *(token for block in blocks for token in block), *numbers(9, 3)]
    without = [*ahead, *numbers(9, 4)]
    pixels = [torch.randn(24, 3 * 2 * 64, generator=generator) for _ in range(2)]
    rows = padded([with_video, without, with_video, without], [numbers(count, count) for count in (5, 2, 3, 6)])
    return {
        **rows,
        "mm_token_type_ids": (rows["input_ids"] == IMAGE) + 2 * (rows["input_ids"] == VIDEO),
        "pixel_values": torch.cat([pixels[0], pixels[1], pixels[0], pixels[1]]),
        "image_grid_thw": image.expand(4, 3),
        "pixel_values_videos": torch.randn(48, 3 * 2 * 64, generator=generator).repeat(2, 1),
        "video_grid_thw": video.expand(2, 3),
    }


def video_rows() -> dict[str, Any]:
    """Qwen2.5-VL: two videos of other sizes and speeds, two completions each."""
    shapes = (COARSE, ZOOM, COARSE, ZOOM)
    prompts = [random_inputs(shape, seed=shape.text_tokens) for shape in shapes]
    ids = [prompt["input_ids"][0].tolist() for prompt in prompts]
    rows = padded(ids, [numbers(count, count) for count in (5, 2, 3, 6)])
    return {
        **rows,
        "mm_token_type_ids": 2 * (rows["input_ids"] == 90),
        **{
            name: torch.cat([prompt[name] for prompt in prompts])
            for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        },
    }


def results(model: torch.nn.Module, rows: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Logits of real tokens, and the gradients of all parameters of a weighted sum of log-probabilities."""
    model.zero_grad()
    logits = model(**rows, **options).logits
    real = rows["attention_mask"].bool()
    targets = rows["input_ids"][:, 1:]
    logps = logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (logps * weights)[real[:, 1:] & real[:, :-1]].sum().backward()
    grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"logits": logits.detach()[real], **grads}


def assert_close(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Within 1e-5 of each tensor's largest element."""
    assert ours.keys() == truth.keys()
    for name, tensor in truth.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@contextlib.contextmanager
def sizes_seen(module: torch.nn.Module) -> Iterator[list[int]]:
    """Elements of the first tensor with which `module` is called."""
    seen: list[int] = []

    def look(_: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append(next(x for x in (*arguments, *options.values()) if isinstance(x, Tensor)).shape[-2])

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize("family", TEXT_MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_rows_give_what_they_give_unpacked(family: str, attention: str, checkpointing: bool) -> None:
    model, rows = text_model(family, attention).train(), text_rows()
    if checkpointing:
        model.gradient_checkpointing_enable()
    truth = results(model, rows, use_cache=False)
    with zoomzero.shared_prefix(model) as packed, sizes_seen(model.model.layers[0]) as tokens:
        ours = results(model, rows)
    assert_close(ours, truth)
    assert tokens[0] == packed.tokens_computed < packed.tokens_given
    assert_close(results(model, rows, use_cache=False), truth)  # as before, behind the context


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_rows_with_images_and_videos(family: str, checkpointing: bool, frozen: bool) -> None:
    model = random_model(kv_heads=1) if family == "qwen2_5_vl" else vision_model(family)
    rows = video_rows() if family == "qwen2_5_vl" else visual_rows(family)
    model.model.visual.requires_grad_(not frozen)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    with sizes_seen(model.model.visual) as patches:
        truth = results(model, rows, use_cache=False)
        plain = sum(patches)
        with zoomzero.shared_prefix(model):
            ours = results(model, rows)
    assert_close(ours, truth)
    assert any(name.startswith("model.visual") for name in ours) is not frozen
    assert sum(patches) - plain == plain // 2  # two rows a visual: the tower sees each once


def test_positions_that_the_caller_gives() -> None:
    model, rows = text_model("qwen2"), text_rows()
    positions = (rows["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    truth = results(model, rows, position_ids=positions)
    with zoomzero.shared_prefix(model):
        assert_close(results(model, rows, position_ids=positions), truth)


def test_logps_of_prompts_and_completions() -> None:
    model = text_model("llama")
    prompts = [numbers(25, 0), torch.tensor(numbers(11, 1))]
    completions = [[numbers(4, 2), numbers(9, 3), [], numbers(1, 4)], [torch.tensor(numbers(5, 5))]]
    with zoomzero.shared_prefix(model) as packed:
        got = packed.logps(prompts, completions, temperature=0.7)
    assert [[len(each) for each in group] for group in got] == [[4, 9, 0, 1], [5]]
    for prompt, group, answers in zip(prompts, completions, got, strict=True):
        for completion, logps in zip(group, answers, strict=True):
            tokens = torch.as_tensor(completion, dtype=torch.long)
            row = torch.cat((torch.as_tensor(prompt), tokens))[None]
            logits = model(row).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    sum(each.sum() for group in got for each in group).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_logps_of_prompts_with_videos() -> None:
    """The positions are the model's own, so its own forward over whole rows gives the same."""
    model = random_model(kv_heads=1)
    prompts = [random_inputs(shape, seed) for seed, shape in enumerate((ZOOM, SHORT))]
    completions = [[numbers(4, 2), numbers(9, 3)], [numbers(5, 5)]]
    with zoomzero.shared_prefix(model) as packed, sizes_seen(model.model.visual) as patches:
        got = packed.logps(prompts, completions)
    assert patches == [sum(len(prompt["pixel_values_videos"]) for prompt in prompts)]
    for prompt, group, answers in zip(prompts, completions, got, strict=True):
        for completion, logps in zip(group, answers, strict=True):
            tokens = torch.tensor(completion)
            row = {
                **prompt,
                "input_ids": torch.cat((prompt["input_ids"], tokens[None]), dim=1),
                "mm_token_type_ids": torch.nn.functional.pad(prompt["mm_token_type_ids"], (0, len(tokens))),
                "attention_mask": None,
            }
            logits = model(**row).logits[0, prompt["input_ids"].shape[1] - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)


def test_a_backward_pass_after_the_context_with_checkpointing() -> None:
    """Gradient checkpointing runs the layers again when the hooks are gone."""
    model, rows = text_model("qwen2").train(), text_rows()
    truth = results(model, rows)
    model.gradient_checkpointing_enable()
    model.zero_grad()
    with zoomzero.shared_prefix(model):
        logits = model(**rows).logits
    real = rows["attention_mask"].bool()
    logps = logits[:, :-1].log_softmax(-1).gather(-1, rows["input_ids"][:, 1:, None])[..., 0]
    (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps))[real[:, 1:] & real[:, :-1]].sum().backward()
    assert_close(
        {name: each.grad for name, each in model.named_parameters()}, {k: truth[k] for k in truth if k != "logits"}
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


def test_tuples_and_the_call_by_position() -> None:
    model, rows = text_model("qwen2").eval(), text_rows()
    ids = rows["input_ids"][1:3]  # without padding: one completion is a token long, the others are not
    expected = model(ids, return_dict=False)[0]
    with zoomzero.shared_prefix(model) as packed:
        torch.testing.assert_close(model(ids, return_dict=False)[0], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.model(ids)[0], model.model(ids, use_cache=True)[0], rtol=1e-5, atol=1e-5)
    assert packed.tokens_computed > 0


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrapped_by_ddp_and_by_lora(process_group: None) -> None:
    rows, prompts, completions = text_rows(), [numbers(25, 0)], [[numbers(4, 2), numbers(9, 3)]]
    lora = get_peft_model(text_model("llama"), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    for model in (lora, DistributedDataParallel(text_model("llama"))):
        truth = results(model, rows)
        with zoomzero.shared_prefix(model) as packed:
            ours = results(model, rows)
            assert packed.tokens_computed < packed.tokens_given
            model.zero_grad()
            (logps,) = packed.logps(prompts, completions)
            (logps[0].sum() + logps[1].sum()).backward()
        assert_close(ours, truth)
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


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
