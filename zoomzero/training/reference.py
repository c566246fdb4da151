"""The frozen start model: it answers the zoom pass, and the KL term is taken to it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero.models.adapters import adapters_off


class Reference:
    """The start model, whole on every process: a copy, or a model with LoRA adapters while they are off.

    Args:
        model: the copy, or the model with adapters.
        has_adapters: which of the two.
        offloaded: the copy's parameters that lie in the host's memory while it is not used.
        device: where they go while it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        has_adapters: bool = False,
        offloaded: Sequence[torch.nn.Parameter] = (),
        device: torch.device | None = None,
    ) -> None:
        self.model, self._has_adapters = model, has_adapters
        self._offloaded: list[tuple[torch.nn.Parameter, Tensor]] = [(each, each.data) for each in offloaded]
        self._device = device

    @contextlib.contextmanager
    def use(self) -> Iterator[PreTrainedModel]:
        """The start model, while the block runs."""
        if self._has_adapters:
            with adapters_off(self.model):
                yield self.model
            return
        try:
            for parameter, host in self._offloaded:
                parameter.data = host.to(self._device, non_blocking=True, copy=True)
            yield self.model
        finally:
            # Nothing has changed them: the host's own are right, and the device's are let go.
            for parameter, host in self._offloaded:
                parameter.data = host


def start_reference(
    start: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    is_offloaded: bool,
    shares_vision: bool,
) -> Reference:
    """The reference of a frozen copy.

    Args:
        start: as `frozen_copy` makes it.
        device: where it works.
        dtype: of its weights, None for those that they have.
        is_offloaded: between its uses its weights lie in the host's memory (page-locked for a GPU).
        shares_vision: its vision tower is the trained model's, and stays where it is.
    """
    if not is_offloaded:
        whole: Any = start
        return Reference(whole.to(device, dtype))
    shared = {id(parameter) for parameter in start.model.visual.parameters()} if shares_vision else set()
    moved = [parameter for parameter in start.parameters() if id(parameter) not in shared]
    for parameter in moved:
        host = parameter.data.to("cpu", dtype)
        parameter.data = host.pin_memory() if device.type == "cuda" else host
    # Buffers are a few numbers.
    for module in start.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return Reference(start, offloaded=moved, device=device)


def frozen_copy(model: PreTrainedModel, *, share_vision: bool) -> PreTrainedModel:
    """The model as it is now, without gradients; a vision tower that is not trained is shared, not copied."""
    visual = model.model.visual
    memo: dict[int, Any] = {id(visual): visual} if share_vision else {}
    frozen = copy.deepcopy(model, memo)
    for name, parameter in frozen.named_parameters():
        if not (share_vision and name.startswith("model.visual.")):
            parameter.requires_grad_(False)
    return frozen.eval()
