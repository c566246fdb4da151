"""vLLM in this process as the language model: videos are encoded here, once, and handed over as features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.models.encoding import EncodedPrompt
from zoomzero.rollouts import Rollouts, SamplingOptions
from zoomzero.rollouts.vllm import VllmSampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a GPU's memory; the vision tower and its frames are in the rest.
MEMORY_FRACTION = 0.8


class VllmLanguageModel:
    """A `LanguageModel` that vLLM runs. Tokens of an earlier pass it takes beside no other video's.

    Args:
        path: the checkpoint, which vLLM loads.
        model: the same checkpoint here. Its own language model is dropped, to hold those weights once.
        max_length: longest prompt and response together, in tokens; the checkpoint's own bound unless told.

    Raises:
        ImportError: vLLM is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], model: PreTrainedModel, max_length: int | None = None) -> None:
        drop_language_model(model)
        self._sampler = VllmSampler(path, model, max_length=max_length, memory_fraction=MEMORY_FRACTION)

    def write(self, prompts: Sequence[EncodedPrompt], options: SamplingOptions) -> Rollouts:
        """As `LanguageModel`."""
        return self._sampler(prompts, options)

    def next_logps(self, prompts: Sequence[EncodedPrompt], token_ids: Sequence[int]) -> Tensor:
        """As `LanguageModel`."""
        return self._sampler.next_token_logps(prompts, token_ids)


def drop_language_model(model: PreTrainedModel) -> None:
    """Leave the vision tower and the config, which is what encoding needs."""
    model.model.language_model = torch.nn.Identity()
    model.lm_head = torch.nn.Identity()
