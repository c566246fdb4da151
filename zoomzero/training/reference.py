"""The frozen start model: it answers the zoom pass, and the KL term is taken to it."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel


def frozen_copy(model: PreTrainedModel, *, share_vision: bool) -> PreTrainedModel:
    """The model as it is now, without gradients; a vision tower that is not trained is shared, not copied."""
    visual = model.model.visual
    memo: dict[int, Any] = {id(visual): visual} if share_vision else {}
    frozen = copy.deepcopy(model, memo)
    for name, parameter in frozen.named_parameters():
        if not (share_vision and name.startswith("model.visual.")):
            parameter.requires_grad_(False)
    return frozen.eval()
