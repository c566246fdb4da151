"""LoRA adapters (PEFT) in a model: switched off, merged, loaded. PEFT is imported where a model has some."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
# What PEFT puts before the name of a layer's own weight.
_BASE = "base_layer."


def without_wrapper(model: Any) -> PreTrainedModel:
    """The model of transformers inside PEFT's wrapper, with the adapters in its layers; other models as they are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether layers of the model carry adapters."""
    return bool(getattr(model, "peft_config", None))


def checked_lora(peft_config: Any, *, freeze_vision: bool) -> Any:
    """The configuration as the trainer takes it: without adapters in a vision tower that is not trained.

    Raises:
        TypeError, ValueError: adapters of a kind that cannot be merged into the weights, or in the head.
    """
    from peft import LoraConfig

    if not isinstance(peft_config, LoraConfig):
        raise TypeError(
            f"ZoomZeroTrainer: peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}; choose LoRA"
        )
    for name, only in (("use_dora", False), ("modules_to_save", None), ("bias", "none"), ("lora_bias", False)):
        value = getattr(peft_config, name)
        if value != only:
            raise ValueError(
                f"ZoomZeroTrainer: peft_config.{name} must stay {only!r}, got {value!r}; the start model must be the "
                "model with its adapter off, and the adapter a sum to its weights"
            )
    checked = copy.copy(peft_config)
    if freeze_vision and not checked.exclude_modules:
        checked.exclude_modules = r".*\bvisual\..*"
    return checked


@contextlib.contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Without the adapters inside the block."""
    layers = _adapted_layers(model)
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


def _adapted_layers(model: PreTrainedModel) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's state with its adapters added to the weights, under the names it has without them.

    The model itself stays as it is: merging in place and taking it back would leave rounding errors in its weights.
    """
    state = model.state_dict()
    if not has_adapters(model):
        return state
    layers = _adapted_layers(model)
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        layer = layers.get(name.rpartition("." + _BASE)[0])
        if layer is not None and name.endswith(_BASE + "weight"):
            for adapter in layer.active_adapters:
                value = value + layer.get_delta_weight(adapter).to(value.dtype)
        elif any(name.startswith(f"{place}.lora_") for place in _parents(name)):
            continue
        merged[name.replace("." + _BASE, ".")] = value
    return merged


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def base_of(folder: Path) -> str:
    """The checkpoint that an adapter's folder names as the one it was trained on.

    Raises:
        ValueError: it names none.
    """
    base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"zoomzero: {folder / ADAPTER_CONFIG} must name its base_model_name_or_path, got {base!r}; write the "
            "folder or hub name of the checkpoint that the adapter was trained on"
        )
    return base
