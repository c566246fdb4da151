"""Checkpoints from a folder or from the hub's cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoomzero.devices import usable_device
from zoomzero.models.adapters import ADAPTER_CONFIG, base_of
from zoomzero.models.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# The trained tiny model that the package carries: `make tiny` writes it.
BUILT_IN = Path(__file__).parents[1] / "synthetic" / "checkpoint"


def checkpoint_file(path: str | os.PathLike[str], name: str) -> Path | None:
    """One file of a checkpoint, from its folder or from the hub (or its cache, where offline); None where it has none.

    Raises:
        OSError: path is neither a folder nor a checkpoint that the hub or its cache knows.
    """
    from transformers.utils import cached_file

    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def load_model(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    device_map: str | None = None,
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """A checkpoint's model in evaluation mode.

    Args:
        path: checkpoint folder or hub name; a folder of LoRA adapters is loaded with their base and merged into it.
        device: CUDA if there is a GPU, else the CPU, unless told.
        dtype: the checkpoint's own on CUDA and float32 on the CPU, unless told.
        device_map: as transformers takes it, e.g. "auto", which spreads the layers over devices; then without a device.
        load_in_4bit: weights in 4 bits by bitsandbytes (not run by the project).

    Raises:
        ValueError: the checkpoint is of another family than those supported, the device is none of this machine's, or
            device and device_map are both given.
        ImportError: accelerate (for a device_map) or bitsandbytes is not installed.
    """
    from transformers import AutoConfig

    adapter = checkpoint_file(path, ADAPTER_CONFIG)
    if adapter is not None:
        base = load_model(base_of(adapter.parent), device, dtype, device_map=device_map, load_in_4bit=load_in_4bit)
        return _merged(base, path)
    family = family_of(AutoConfig.from_pretrained(path))
    if device is not None and device_map is not None:
        raise ValueError(
            f"load_model: device and device_map exclude each other, got {device} and {device_map!r}; leave one out"
        )
    target = usable_device(device)
    chosen: Any = dtype or ("auto" if target.type == "cuda" else torch.float32)
    more: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    if load_in_4bit:
        from transformers import BitsAndBytesConfig

        compute = torch.bfloat16 if chosen == "auto" else chosen
        more |= {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)}
        more.setdefault("device_map", {"": target})
    model: Any = family.model_class().from_pretrained(path, dtype=chosen, **more)
    # Layers that were placed while they were loaded, or are packed in 4 bits, stay where they are.
    loaded: PreTrainedModel = (model if "device_map" in more else model.to(target)).eval()
    return loaded


def _merged(base: PreTrainedModel, adapter: str | os.PathLike[str]) -> PreTrainedModel:
    """The base with the adapter in its weights."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(
            f"load_model: {adapter} holds LoRA adapters, which need peft, got: {error}; install it"
        ) from error
    merged: Any = PeftModel.from_pretrained(base, os.fspath(adapter)).merge_and_unload()
    loaded: PreTrainedModel = merged.eval()
    return loaded
