"""Sampling a group of responses per prompt with the prompt computed, and held, once.

Problem: GRPO samples G responses of one prompt whose video fills most of its tokens; G rows per prompt repeat the
vision tower and the prefill G times and read G copies of the prompt's keys at every step. Here the prompts are
prefilled once each (left-padded into one batch); a decoding step is then one row per prompt with G new tokens, one of
each response. The row's keys are the prompt's, once, followed by those of all responses in order of time, and a mask
lets each response see the prompt and itself. Keys are written in place into a buffer with room for the responses, never
grown by copying.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from zoomzero.models.encoding import EncodedPrompt
from zoomzero.models.forward import additive_mask, evaluation_mode, prefill
from zoomzero.rollouts import Rollouts, SamplingOptions


class _GroupLayer(CacheLayerMixin):
    """Keys and values [P, heads, places, dim] of one layer: first the prompts', then what is appended to them."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, length, dim = key_states.shape
        self.keys = key_states.new_empty(rows, heads, length + self.room, dim)
        self.values = value_states.new_empty(rows, heads, length + self.room, dim)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    options: SamplingOptions,
    generator: torch.Generator | None = None,
) -> Rollouts:
    """Sample `options.num_generations` responses of every prompt; see the file header for what is shared.

    generator: random numbers for reproducible sampling (on the model's device); None uses torch's global state.
    Greedy decoding (temperature 0) gives the arg max of a forward over prompt + completion at every token.
    """
    if not prompts:
        raise ValueError("generate: needs at least one prompt, got none; skip the call for an empty batch")
    group_size = options.num_generations
    with evaluation_mode(model):
        room = group_size * (options.max_new_tokens - 1)
        cache = Cache(layers=[_GroupLayer(room) for _ in model.model.language_model.layers])
        hidden, keep = prefill(model, prompts, cache)
        starts = torch.tensor([prompt.next_position for prompt in prompts], device=keep.device)
        return _decode(model, cache, hidden, _group_mask(keep, group_size, room), starts, options, generator)


def _group_mask(keep: Tensor, group_size: int, room: int) -> Tensor:
    """keep bool [P, L] -> bool [P, 1, G, L + room]: response g sees its prompt and every G-th later key, its own."""
    own = torch.eye(group_size, dtype=torch.bool, device=keep.device).repeat(1, room // group_size)
    prompt = keep[:, None, None].expand(-1, 1, group_size, -1)
    return torch.cat((prompt, own.expand(len(keep), 1, -1, -1)), dim=-1)


def _decode(
    model: PreTrainedModel,
    cache: Cache,
    hidden: Tensor,
    mask: Tensor,
    starts: Tensor,
    options: SamplingOptions,
    generator: torch.Generator | None,
) -> Rollouts:
    """hidden [P, D] after the prompts, mask as `_group_mask` gives it, starts int64 [P]: the first token's position."""
    num_prompts, group_size = len(hidden), options.num_generations
    logits = model.lm_head(hidden).repeat_interleave(group_size, dim=0)
    eos = torch.tensor(options.eos_token_ids, device=hidden.device)
    running = torch.ones(num_prompts * group_size, dtype=torch.bool, device=hidden.device)
    columns: dict[str, list[Tensor]] = {"ids": [], "mask": [], "logps": [], "top": []}
    for step in range(options.max_new_tokens):
        token, logps = _sample(logits, options, generator)
        columns["ids"].append(token.where(running, options.pad_token_id))
        columns["mask"].append(running)
        columns["logps"].append(logps.gather(-1, token[:, None])[:, 0].where(running, 0.0))
        if options.num_top_logps:
            columns["top"].append(logps.topk(options.num_top_logps, dim=-1).values)
        running = running & ~torch.isin(token, eos)
        if step + 1 == options.max_new_tokens or not bool(running.any()):
            break
        num_keys = cache.get_seq_length() + group_size
        outputs = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(token.view(num_prompts, group_size)),
            position_ids=(starts + step)[None, :, None].expand(3, -1, group_size),
            attention_mask=additive_mask(model, mask[..., :num_keys]),
            past_key_values=cache,
            use_cache=True,
        )
        logits = model.lm_head(outputs.last_hidden_state.flatten(0, 1))
    return Rollouts(
        token_ids=torch.stack(columns["ids"], dim=1),
        mask=torch.stack(columns["mask"], dim=1),
        logps=torch.stack(columns["logps"], dim=1),
        stopped=~running,
        top_logps=torch.stack(columns["top"], dim=1) if options.num_top_logps else None,
    )


def _sample(logits: Tensor, options: SamplingOptions, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """logits [R, V] -> tokens int64 [R] and the log-probabilities float32 [R, V] they were drawn from."""
    if options.temperature == 0:
        logps = logits.float().log_softmax(-1)
        return logps.argmax(-1), logps
    logps = (logits.float() / options.temperature).log_softmax(-1)
    return torch.multinomial(logps.exp(), 1, generator=generator)[:, 0], logps


class SharedPromptSampler:
    """The `Sampler` that runs in the policy itself, with `generate`: nothing to synchronise, nothing held twice."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def generate(
        self, prompts: Sequence[EncodedPrompt], options: SamplingOptions, generator: torch.Generator | None = None
    ) -> Rollouts:
        return generate(self.model, prompts, options, generator)
