"""Forward passes over encoded prompts: prefill, the next token's log-probabilities, and the masks they take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.models.encoding import EncodedPrompt, language_inputs
from zoomzero.models.packed_attention import PREFIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


def prefill(model: PreTrainedModel, prompts: Sequence[EncodedPrompt], cache: Cache | None) -> tuple[Tensor, Tensor]:
    """One left-padded forward over all prompts. Returns the last hidden state [P, D] and the key mask bool [P, L]."""
    device = model.device
    length = max(prompt.input_ids.numel() for prompt in prompts)
    input_ids = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
    position_ids = torch.zeros(3, len(prompts), length, dtype=torch.long, device=device)
    keep = torch.zeros(len(prompts), length, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        start = length - prompt.input_ids.numel()
        input_ids[row, start:] = prompt.input_ids
        position_ids[:, row, start:] = prompt.position_ids
        keep[row, start:] = True
    is_video = keep & (input_ids == model.config.video_token_id)
    outputs = model.model.language_model(
        **language_inputs(model, input_ids, is_video, [prompt.features for prompt in prompts]),
        position_ids=position_ids,
        attention_mask=None if bool(keep.all()) else keep.long(),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return outputs.last_hidden_state[:, -1], keep


@torch.no_grad()
def next_token_logps(model: PreTrainedModel, prompts: Sequence[EncodedPrompt]) -> Tensor:
    """Log-probabilities float32 [P, V] of the token after each prompt, prompts of any lengths in one forward.

    The zoom pass reads its answer from this (single greedy token), inference reads an answer's confidence.
    """
    if not prompts:
        raise ValueError("next_token_logps: needs at least one prompt, got none; skip the call for an empty batch")
    with evaluation_mode(model):
        hidden, _ = prefill(model, prompts, cache=None)
        return model.lm_head(hidden).float().log_softmax(-1)


def additive_mask(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """Turn a boolean 4-D mask into what the language model's attention takes: SDPA boolean, eager additive.

    ValueError for other attention implementations: they take no 4-D mask.
    """
    implementation = model.model.language_model.config._attn_implementation.removeprefix(PREFIX)
    if implementation == "sdpa":
        return mask
    if implementation == "eager":
        dtype = model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    raise ValueError(
        f"zoomzero: shared prompts need an attention with a 4-D mask (sdpa or eager), got {implementation!r}; "
        'load the model with attn_implementation="sdpa"'
    )


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: no dropout, and no gradient checkpointing, which would drop the cache."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
