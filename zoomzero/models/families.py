"""The supported model families, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoomzero.models.base import Family
from zoomzero.models.qwen2_5_vl import QWEN2_5_VL
from zoomzero.models.qwen2_vl import QWEN2_VL
from zoomzero.models.qwen3_vl import QWEN3_VL

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)


def family_of(config: PretrainedConfig) -> Family:
    """The family of a checkpoint's config.

    Raises:
        ValueError: the checkpoint is of another family.
    """
    for family in FAMILIES:
        if config.model_type == family.model_type:
            return family
    names = ", ".join(family.model_type for family in FAMILIES)
    raise ValueError(
        f"zoomzero: the checkpoint must be of a family among {names}, got {config.model_type}; choose one of these"
    )
