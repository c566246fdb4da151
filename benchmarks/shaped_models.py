"""Random vision-language models of a given size, and prompts with a video for them."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from zoomzero.models import mrope_positions
from zoomzero.models.encoding import EncodedPrompt, PlacedVideo, video_features
from zoomzero.synthetic import tiny_model

# The language model of Qwen2.5-0.5B; the vision tower stays the tiny model's, for it is counted apart.
HALF_BILLION = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "initializer_range": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 8, 8]},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {"tiny": {}, "0.5B": HALF_BILLION}


def shaped_config(shape: str) -> Qwen2_5_VLConfig:
    """The config of a random model: "tiny" (0.5 M parameters) or "0.5B"."""
    config = copy.deepcopy(tiny_model().config)
    if not SHAPES[shape]:
        return config
    for name, value in SHAPES[shape].items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = None
    config.text_config.head_dim = 64
    config.text_config.max_window_layers = SHAPES[shape]["num_hidden_layers"]
    config.vision_config.out_hidden_size = SHAPES[shape]["hidden_size"]
    return type(config)(**config.to_dict())


def shaped_model(shape: str) -> Qwen2_5_VLForConditionalGeneration:
    """A random model, float32, of the shape's config."""
    if not SHAPES[shape]:
        return tiny_model()
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(shaped_config(shape)).eval()


@dataclass(frozen=True)
class Work:
    """What is sampled: prompts, responses per prompt, tokens per response, tokens per prompt."""

    prompts: int
    responses: int
    tokens: int
    prompt_tokens: int

    def scaled(self, factor: float) -> Work:
        """About `factor` times the work, the prompts as long as before."""
        prompts = max(2, round(self.prompts * factor ** (1 / 2)))
        tokens = max(8, round(self.tokens * factor ** (1 / 2)))
        return Work(prompts, self.responses, tokens, self.prompt_tokens)


@torch.no_grad()
def video_prompts(model: Qwen2_5_VLForConditionalGeneration, work: Work) -> list[EncodedPrompt]:
    """Prompts of `work.prompt_tokens` tokens, nearly all of a video of random pixels; runs the vision tower once."""
    generator = torch.Generator().manual_seed(1)
    side = 4  # tokens along a frame's edge
    steps = (work.prompt_tokens - 24) // side**2
    grid = (steps, 2 * side, 2 * side)
    config = model.config
    around = torch.randint(20, 200, (work.prompts, work.prompt_tokens - steps * side**2 - 2), generator=generator)
    video = torch.full((steps * side**2,), config.video_token_id)
    pixels = torch.randn(work.prompts, steps * 4 * side**2, 3 * 2 * 8 * 8, generator=generator)
    features = video_features(model, [(each, torch.tensor([grid])) for each in pixels])
    prompts = []
    for text, own in zip(around, features, strict=True):
        start, end = torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id])
        ids = torch.cat((text[:4], start, video, end, text[4:]))
        inputs = {
            "input_ids": ids[None], "mm_token_type_ids": (ids == config.video_token_id)[None].long() * 2,
            "video_grid_thw": torch.tensor([grid]), "second_per_grid_ts": torch.tensor([1.0]),
        }  # fmt: skip
        placed = PlacedVideo(grid, 1.0, tuple(float(step) for step in range(steps)))
        prompts.append(EncodedPrompt(ids, mrope_positions(config, inputs)[0], own, (placed,)))
    return prompts


def result_name(benchmark: str, shapes: Sequence[str]) -> str:
    """The name of the result file: of its own where only some of the shapes were measured."""
    return benchmark if set(shapes) == set(SHAPES) else "_".join((benchmark, *shapes))


def load() -> str:
    """How busy the machine is, for the result file."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
