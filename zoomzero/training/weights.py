"""Weights and the optimizer's state in and out of models, sharded or not, with adapters or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from zoomzero.models.adapters import has_adapters, without_wrapper
from zoomzero.models.families import family_of

if TYPE_CHECKING:
    from zoomzero.training.config import ZoomZeroConfig

# What activation checkpointing of accelerate puts into names.
CHECKPOINTED = "_checkpoint_wrapped_module."


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is without sharding; all processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights_dtype(settings: ZoomZeroConfig, peft_config: Any) -> torch.dtype:
    """In which dtype a run loads the model.

    Trained weights are float32: a step of 1e-6 is lost in bfloat16's eight bits. Frozen ones under adapters are
    bfloat16 where the computation is; PEFT makes adapters float32.
    """
    return torch.bfloat16 if peft_config is not None and settings.bf16 else torch.float32


@torch.no_grad()
def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """A checkpoint's weights, or adapters, into a model that may be sharded; all processes call it together.

    Raises:
        ValueError: it does not hold what the model is made of.
    """
    saved, wanted = _saved(model, checkpoint)
    if missing := sorted(wanted.keys() - saved.keys()):
        raise ValueError(
            f"ZoomZeroTrainer: {checkpoint} must hold the model's weights, got none of {missing[0]} and "
            f"{len(missing) - 1} others; resume with the model and peft_config that it was made with"
        )
    for name, parameter in wanted.items():
        value = saved[name].to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)


def _saved(model: torch.nn.Module, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a checkpoint holds, and the model's own parameters, by the same names."""
    own: dict[str, Tensor] = {name.replace(CHECKPOINTED, ""): value for name, value in model.named_parameters()}
    core = without_wrapper(model)
    if has_adapters(core):
        from peft import get_peft_model_state_dict, load_peft_weights

        return load_peft_weights(str(checkpoint), device="cpu"), get_peft_model_state_dict(model, state_dict=own)
    loaded: Any = family_of(core.config).model_class().from_pretrained(checkpoint, dtype=core.dtype)
    return dict(loaded.named_parameters()), own


def optimizer_state(model: torch.nn.Module, optimizer: Any) -> dict[str, Any]:
    """An optimizer's state by the parameters' names, whole, on the CPU; all processes call it together."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, _inner(optimizer), options=options)


def load_optimizer_state(model: torch.nn.Module, optimizer: Any, file: Path) -> None:
    """The state that `optimizer_state` gave into an optimizer; all processes call it together."""
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, _inner(optimizer), state, options=options)


def _inner(optimizer: Any) -> Any:
    """torch's optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)
