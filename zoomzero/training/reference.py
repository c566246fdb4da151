"""The frozen start model: it answers the zoom pass, and the KL term is taken to it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from zoomzero.models.adapters import adapters_off


class Reference:
    """The start model, whole on every process: a copy, or a model with LoRA adapters while they are off.

    Args:
        model: the copy, or the model with adapters.
        has_adapters: which of the two.
    """

    def __init__(self, model: PreTrainedModel, *, has_adapters: bool = False) -> None:
        self.model, self._has_adapters = model, has_adapters

    @contextlib.contextmanager
    def use(self) -> Iterator[PreTrainedModel]:
        """The start model, while the block runs."""
        if self._has_adapters:
            with adapters_off(self.model):
                yield self.model
            return
        yield self.model


def frozen_copy(model: PreTrainedModel, *, share_vision: bool) -> PreTrainedModel:
    """The model as it is now, without gradients; a vision tower that is not trained is shared, not copied."""
    visual = model.model.visual
    memo: dict[int, Any] = {id(visual): visual} if share_vision else {}
    frozen = copy.deepcopy(model, memo)
    for name, parameter in frozen.named_parameters():
        if not (share_vision and name.startswith("model.visual.")):
            parameter.requires_grad_(False)
    return frozen.eval()
