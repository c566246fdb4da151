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


def require_supported(model: object) -> None:
    """TypeError unless `model` is of one of the families' own classes in transformers."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        for family in FAMILIES:
            if model.config.model_type == family.model_type and isinstance(model, family.model_class()):
                return
    names = ", ".join(family.class_name for family in FAMILIES)
    raise TypeError(
        f"zoomzero: the model must be one of transformers' {names} (their parts are used directly), got "
        f"{type(model).__name__}; load a checkpoint with zoomzero.models.load_model"
    )
