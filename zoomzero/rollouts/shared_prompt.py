"""Sampling a group of responses per prompt with the prompt computed, and held, once.

Problem: GRPO samples G responses of one prompt whose video fills most of its tokens; G rows per prompt repeat the
vision tower and the prefill G times and read G copies of the prompt's keys at every step. Here the prompts are
prefilled once each, without padding; a decoding step is then one row per prompt with G new tokens, one of each
response. The row's keys are the prompt's, once, followed by those of all responses in order of time, and a mask lets
each response see the prompt and itself.

Note [Steps that are all alike]
A step reads and writes buffers that stay where they are, in shapes that do not grow: keys and values have room for the
longest responses, the mask opens in place, and what changes from step to step (places, positions, tokens) lies on the
device. The host does not wait for the device but every `STEPS_PER_LOOK` steps, to see whether all responses have ended:
so a GPU is never idle between steps, and a CUDA graph could capture one. Not measured on a GPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from zoomzero.models.batches import by_tokens
from zoomzero.models.encoding import EncodedPrompt
from zoomzero.models.forward import evaluation_mode, prefill
from zoomzero.rollouts import Rollouts, SamplingOptions

# Steps between two looks at whether all responses have ended; up to so many steps are computed in vain.
STEPS_PER_LOOK = 16


class _GroupLayer(CacheLayerMixin):
    """Keys and values [P, heads, K, dim] of one layer: each prompt's, and from the longest prompt's end the responses'.

    prompt_lengths: of the P prompts, whose keys come first, some in a row at a time; room: places for the keys that
    follow; places int64 [G]: where those of the present step belong.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, prompt_lengths: Sequence[int], room: int, places: Tensor) -> None:
        super().__init__()
        self.prompt_lengths, self.room, self.places = prompt_lengths, room, places
        # Prompts whose keys are there.
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        _, heads, _, dim = key_states.shape
        shape = (len(self.prompt_lengths), heads, self.get_max_length(), dim)
        # Zeros: a masked key must be finite.
        self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if self.filled == len(self.prompt_lengths):
            self.keys.index_copy_(2, self.places, key_states)
            self.values.index_copy_(2, self.places, value_states)
            return self.keys, self.values
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = 0
        while place < key_states.shape[2]:
            length = self.prompt_lengths[self.filled]
            for whole, row in ((self.keys, key_states), (self.values, value_states)):
                whole[self.filled, :, :length] = row[0, :, place : place + length]
            place, self.filled = place + length, self.filled + 1
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.get_max_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_max_length(self) -> int:
        return max(self.prompt_lengths) + self.room

    def get_max_cache_shape(self) -> int:
        """The name of `get_max_length` in older releases of transformers, 5.5 among them."""
        return self.get_max_length()


class _Group:
    """P groups of G responses between two steps. See Note [Steps that are all alike]."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[EncodedPrompt], options: SamplingOptions) -> None:
        self.model = model
        device, size = model.device, options.num_generations
        lengths = [prompt.input_ids.numel() for prompt in prompts]
        room = size * (options.max_new_tokens - 1)
        self.places = torch.arange(size, device=device) + max(lengths)
        layers = model.model.language_model.layers
        self.cache = Cache(layers=[_GroupLayer(lengths, room, self.places) for _ in layers])
        batches = by_tokens(lengths, options.max_prefill_tokens or sum(lengths))
        hidden = torch.cat([prefill(model, prompts[part.start : part.stop], self.cache) for part in batches])
        self.logits: Tensor = model.lm_head(hidden).repeat_interleave(size, dim=0)
        """[P*G, V]: of the next token."""
        self.token = torch.zeros(len(prompts), size, dtype=torch.long, device=device)
        starts = torch.tensor([prompt.next_position for prompt in prompts], device=device)
        self.positions = starts[None, :, None].repeat(3, 1, size)
        config = model.model.language_model.config
        heads_per_key = config.num_attention_heads // config.num_key_value_heads
        closed = float("-inf")
        self.own = torch.full((size, size), closed, device=device, dtype=hidden.dtype).fill_diagonal_(0.0)
        self.own = self.own.repeat(heads_per_key, 1).expand(len(prompts), 1, -1, -1)
        self.mask = hidden.new_full((len(prompts), 1, heads_per_key * size, max(lengths) + room), closed)
        for row, length in enumerate(lengths):
            self.mask[row, ..., :length] = 0.0

    def step(self, token: Tensor) -> None:
        """Take the responses' new tokens int64 [P*G] in, and find the logits of those after them."""
        self.token.copy_(token.view_as(self.token))
        self.mask.index_copy_(3, self.places, self.own)
        outputs = self.model.model.language_model(
            input_ids=self.token,
            position_ids=self.positions,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            group_step=True,
        )
        self.logits.copy_(self.model.lm_head(outputs.last_hidden_state.flatten(0, 1)))
        self.places += len(self.places)
        self.positions += 1


class _Responses:
    """What has been sampled so far, in buffers of the full length."""

    def __init__(self, num_rows: int, options: SamplingOptions, device: torch.device) -> None:
        shape, self.options = (num_rows, options.max_new_tokens), options
        self.token_ids = torch.full(shape, options.pad_token_id, device=device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)
        self.logps = torch.zeros(shape, device=device)
        self.top_logps = torch.zeros(*shape, options.num_top_logps, device=device)
        self.running = torch.ones(num_rows, dtype=torch.bool, device=device)
        self._eos = torch.tensor(options.eos_token_ids, device=device)
        self._step = torch.zeros(1, dtype=torch.long, device=device)

    def add(self, token: Tensor, logps: Tensor) -> None:
        """Append a token int64 [R], drawn from log-probabilities [R, V], to each running response."""
        of_token = logps.gather(-1, token[:, None]).where(self.running[:, None], 0.0)
        self.token_ids.index_copy_(1, self._step, token.where(self.running, self.options.pad_token_id)[:, None])
        self.mask.index_copy_(1, self._step, self.running[:, None])
        self.logps.index_copy_(1, self._step, of_token)
        if self.options.num_top_logps:
            self.top_logps.index_copy_(1, self._step, logps.topk(self.options.num_top_logps, dim=-1).values[:, None])
        self.running &= ~torch.isin(token, self._eos)
        self._step += 1

    def rollouts(self) -> Rollouts:
        """The responses, padded to the longest."""
        length = int(self.mask.any(0).sum())
        return Rollouts(
            token_ids=self.token_ids[:, :length].clone(),
            mask=self.mask[:, :length].clone(),
            logps=self.logps[:, :length].clone(),
            stopped=~self.running,
            top_logps=self.top_logps[:, :length].clone() if self.options.num_top_logps else None,
        )


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
    with evaluation_mode(model):
        group = _Group(model, prompts, options)
        responses = _Responses(len(group.logits), options, group.logits.device)
        for step in range(1, options.max_new_tokens + 1):
            token, logps = _sample(group.logits, options, generator)
            responses.add(token, logps)
            if step == options.max_new_tokens or (step % STEPS_PER_LOOK == 0 and not bool(responses.running.any())):
                break
            group.step(token)
        return responses.rollouts()


def _sample(logits: Tensor, options: SamplingOptions, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """logits [R, V] -> tokens int64 [R] and the log-probabilities float32 [R, V] they were drawn from."""
    if options.temperature == 0:
        logps = logits.float().log_softmax(-1)
        return logps.argmax(-1), logps
    logps = (logits.float() / options.temperature).log_softmax(-1)
    # What torch.multinomial computes, which looks at the values on the host first.
    waits = torch.empty_like(logps).exponential_(generator=generator)
    return (logps.exp() / waits).argmax(-1), logps
