"""What autograd keeps of a forward, counted: layers of the real model run on tensors without memory.

Note [Counted, not derived]: which values a layer keeps for its backward pass depends on the family, on what is trained,
on adapters, on autocast and on checkpointing. So one layer and two layers of the model run under torch's
FakeTensorMode, where shapes and graphs are real and no memory is, and the saved tensors' storages are added up; the
difference is a layer. Fakes lie on the CPU, whose autocast differs from CUDA's for few operations.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoomzero.models.adapters import checked_lora
from zoomzero.models.families import family_of
from zoomzero.models.packed_attention import PackedLengths, packed_arguments, use_packed_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class LayerActivations:
    """Bytes that a training forward of the language model keeps for its backward pass."""

    outside: int
    """Outside the layers."""
    per_layer: int
    """In each layer."""

    def total(self, num_layers: int) -> int:
        """Of all layers."""
        return self.outside + num_layers * self.per_layer


def meta_model(config: PretrainedConfig, peft_config: Any = None, *, freeze_vision: bool = True) -> Any:
    """The model of a config on the meta device, with adapters as the trainer puts them in; no memory is taken."""
    with torch.device("meta"):
        model: Any = family_of(config).model_class()(config)
        model.model.visual.requires_grad_(not freeze_vision)
        if peft_config is not None:
            from peft import get_peft_model

            get_peft_model(model, checked_lora(peft_config, freeze_vision=freeze_vision))
    return model


def kept_activations(
    config: PretrainedConfig,
    lengths: PackedLengths,
    *,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    checkpointing: bool = False,
    peft_config: Any = None,
) -> LayerActivations:
    """Count what the layers keep of one packed row.

    Args:
        config: of the model; its weights are not read.
        lengths: of the row's groups, in tokens.
        dtype: of frozen weights under adapters, of all weights without; adapters are float32.
        autocast: the forward runs under bfloat16 autocast.
        checkpointing: each layer keeps its input alone, and is computed again in the backward pass.
        peft_config: a LoraConfig, None where all weights of the language model are trained.
    """
    one, two = (
        _kept(_shortened(config, count), lengths, dtype, peft_config, autocast=autocast, checkpointing=checkpointing)
        for count in (1, 2)
    )
    return LayerActivations(outside=2 * one - two, per_layer=two - one)


def _shortened(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """The config with so many layers in the language model and one in the vision tower, which does not run."""
    short: Any = copy.deepcopy(config)
    short.text_config.num_hidden_layers = num_layers
    if getattr(short.text_config, "layer_types", None):
        short.text_config.layer_types = short.text_config.layer_types[:num_layers]
    short.vision_config.depth = 1
    if hasattr(short.vision_config, "deepstack_visual_indexes"):
        short.vision_config.deepstack_visual_indexes = [0]
    return short


def _kept(
    config: PretrainedConfig,
    lengths: PackedLengths,
    dtype: torch.dtype,
    peft_config: Any,
    *,
    autocast: bool,
    checkpointing: bool,
) -> int:
    model = meta_model(config, peft_config)
    language = model.model.language_model
    use_packed_attention(model)
    language.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The storage itself is kept too, so that no other takes its place in memory.
        found[storage._cdata] = storage.nbytes(), storage
        return tensor

    with FakeTensorMode():
        _make_fake(language, dtype)
        own = {parameter.untyped_storage()._cdata for parameter in language.parameters()}
        count = sum(lengths.prefix_lengths) + sum(map(sum, lengths.branch_lengths))
        hidden = torch.empty(1, count, language.config.hidden_size, dtype=dtype).requires_grad_()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        ):
            language(
                inputs_embeds=hidden,
                position_ids=torch.arange(count).expand(3, 1, -1),
                **packed_arguments(lengths, torch.device("cpu")),
            )
    return sum(num_bytes for place, (num_bytes, _) in found.items() if place not in own)


def _make_fake(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Replace a meta model's tensors by fakes on the CPU; adapters stay float32."""
    for name, module in model.named_modules():
        wanted = torch.float32 if "lora_" in name else dtype
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                fake = torch.empty(tensor.shape, dtype=wanted if tensor.is_floating_point() else tensor.dtype)
                is_parameter = isinstance(tensor, torch.nn.Parameter)
                tensors[key] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake


def full_groups(prompt_tokens: int, response_tokens: int, group_size: int, num_groups: int) -> PackedLengths:
    """Groups of prompts and full-length responses, of which a last token is no input."""
    return PackedLengths([prompt_tokens] * num_groups, [[response_tokens - 1] * group_size] * num_groups)
