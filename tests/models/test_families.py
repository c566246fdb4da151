"""Families are told by the config; checkpoints load as their family's class, and others are refused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config

from zoomzero.models import FAMILIES, family_of, load_model
from zoomzero.models.base import CLIP_MEAN, HALVES
from zoomzero.synthetic import tiny_checkpoint


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_family_is_told_by_the_model_type_of_transformers_own_class(family) -> None:
    config = family.model_class().config_class()
    assert family_of(config) is family
    assert family_of(AutoConfig.for_model(family.model_type)) is family


def test_geometry_is_the_configs_and_statistics_the_checkpoints_before_the_familys() -> None:
    config = AutoConfig.for_model("qwen3_vl")
    config.vision_config.patch_size = 12
    geometry = family_of(config).geometry(config)
    assert (geometry.patch_size, geometry.mean, geometry.times_in_prompt) == (12, HALVES, True)
    own = family_of(config).geometry(config, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    assert (own.mean, own.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    config = AutoConfig.for_model("qwen2_5_vl")
    geometry = family_of(config).geometry(config)
    assert (geometry.mean, geometry.times_in_prompt) == (CLIP_MEAN, False)


def test_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="among qwen2_vl, qwen2_5_vl, qwen3_vl, got qwen2; choose one"):
        family_of(Qwen2Config())


def test_checkpoints_load_ready_to_answer(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint(), device="cpu")
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert (model.dtype, model.training) == (torch.float32, False)
    assert load_model(tiny_checkpoint(), "cpu", torch.bfloat16).dtype == torch.bfloat16
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(ValueError, match="must be of a family among"):
        load_model(tmp_path)
