"""Small random decoders of every family that `shared_prefix` knows, and rows of groups as trainers hold them."""

from __future__ import annotations

from typing import Any

import torch
from support.tiny_qwen import COARSE, ZOOM, random_inputs, random_model
from torch import Tensor
from transformers import (
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
    """Of qwen2_vl, qwen2_5_vl or qwen3_vl. Patches of 8x8x2 pixels, two by two a token."""
    if family == "qwen2_5_vl":
        return random_model(kv_heads=1)
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


def rows_with_visuals(family: str) -> dict[str, Any]:
    """Rows of groups with images, videos or both, as the family takes them."""
    return video_rows() if family == "qwen2_5_vl" else visual_rows(family)


def results(model: torch.nn.Module, rows: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    """Of real tokens the hidden states and log-probabilities, and the gradients of all parameters of a weighted sum."""
    model.zero_grad()
    hidden: list[Tensor] = []
    head = next(module for name, module in model.named_modules() if name.endswith("lm_head"))
    handle = head.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[0].detach()))
    logits = model(**rows, **options).logits
    handle.remove()
    real = rows["attention_mask"].bool()
    seen = real[:, 1:] & real[:, :-1]
    logps = logits[:, :-1].log_softmax(-1).gather(-1, rows["input_ids"][:, 1:, None])[..., 0]
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (logps * weights)[seen].sum().backward()
    grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"hidden states": hidden[0][real], "logps": logps.detach()[seen], **grads}


def assert_close(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Within 1e-5 of each tensor's largest element."""
    assert ours.keys() == truth.keys()
    for name, tensor in truth.items():
        scale = float(tensor.abs().max())
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")
