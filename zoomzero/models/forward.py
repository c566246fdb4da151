"""Forward passes over encoded prompts: prefill, the next token's log-probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.limits import FORWARD_TOKENS
from zoomzero.models.batches import by_tokens
from zoomzero.models.encoding import EncodedPrompt, language_inputs
from zoomzero.models.packed_attention import PackedLengths, packed_arguments, use_packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


def prefill(model: PreTrainedModel, prompts: Sequence[EncodedPrompt], cache: Cache | None) -> Tensor:
    """One forward over all prompts, one after the other in one row, without padding. The last hidden state [P, D].

    cache: takes the keys and values [1, heads, N, D] of that row, or None.
    """
    use_packed_attention(model)
    input_ids = torch.cat([prompt.input_ids for prompt in prompts])[None]
    lengths = [prompt.input_ids.numel() for prompt in prompts]
    is_video = input_ids == model.config.video_token_id
    outputs = model.model.language_model(
        **language_inputs(model, input_ids, is_video, [prompt.features for prompt in prompts]),
        position_ids=torch.cat([prompt.position_ids for prompt in prompts], dim=1)[:, None],
        past_key_values=cache,
        **packed_arguments(PackedLengths(lengths, [[]] * len(lengths)), input_ids.device),
    )
    ends = torch.tensor(lengths, device=input_ids.device).cumsum(0) - 1
    last: Tensor = outputs.last_hidden_state[0, ends]
    return last


@torch.no_grad()
def next_token_logps(
    model: PreTrainedModel, prompts: Sequence[EncodedPrompt], forward_tokens: int = FORWARD_TOKENS
) -> Tensor:
    """Log-probabilities float32 [P, V] of the token after each prompt, for prompts of any lengths.

    The zoom pass reads its answer from this (single greedy token), inference reads an answer's confidence.

    forward_tokens: prompts share a forward up to so many tokens; a longer prompt has one of its own.
    """
    if not prompts:
        raise ValueError("next_token_logps: needs at least one prompt, got none; skip the call for an empty batch")
    with evaluation_mode(model):
        parts = by_tokens([prompt.input_ids.numel() for prompt in prompts], forward_tokens)
        hidden = torch.cat([prefill(model, [prompts[index] for index in part], cache=None) for part in parts])
        return model.lm_head(hidden).float().log_softmax(-1)


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no dropout, and no gradient checkpointing, which would drop the cache."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
