"""Positions equal vLLM's own functions for every family, on prompts of text, images and videos in any order."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.vision_prompts import Image, Video, config_of, lay_out, random_parts
from support.vllm_engine import import_vllm

from zoomzero.models import mrope_positions

import_vllm()

from vllm.multimodal.inputs import (  # noqa: E402
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)

CLASSES = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
}


def _vllm_positions(model_type: str, config: Any, parts: Sequence[int | Image | Video]) -> tuple[torch.Tensor, int]:
    """What vLLM's model of the family computes; its weights are not needed."""
    prompt = lay_out(model_type, parts)
    specs = []
    blocks = [part for part in parts if not isinstance(part, int)]
    for number, (part, offset) in enumerate(zip(blocks, prompt.offsets, strict=True)):
        if isinstance(part, Image):
            modality, data = "image", {"image_grid_thw": torch.tensor([1, 2 * part.height, 2 * part.width])}
        else:
            modality = "video"
            data = {"video_grid_thw": torch.tensor([part.frames, 2 * part.height, 2 * part.width])}
            if model_type == "qwen2_5_vl":
                data["second_per_grid_ts"] = torch.tensor(part.seconds)
        item = MultiModalKwargsItem(
            {name: MultiModalFieldElem(value, MultiModalBatchedField()) for name, value in data.items()}
        )
        specs.append(MultiModalFeatureSpec(item, modality, str(number), PlaceholderRange(offset, 1)))
    module, name = CLASSES[model_type]
    kind = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)
    model = object.__new__(kind)
    object.__setattr__(model, "config", config)
    ids = prompt.inputs["input_ids"][0].tolist()
    positions, delta = model.get_mrope_input_positions(ids, specs)
    return positions, delta + len(ids)


@pytest.mark.parametrize("model_type", CLASSES)
def test_positions_equal_vllms(model_type: str) -> None:
    checked = 0
    for seed in range(300):
        parts = random_parts(seed)
        if parts == [0]:
            continue
        config = config_of(model_type, tokens_per_second=1 + seed % 4)
        ours, following = mrope_positions(config, lay_out(model_type, parts).inputs)
        theirs, expected_following = _vllm_positions(model_type, config, parts)
        assert torch.equal(ours, theirs), parts
        assert following == expected_following
        checked += ours.shape[1]
    assert checked > 50_000
