"""Sampling a group of responses per prompt with the prompt computed, and held, once.

Problem: GRPO samples G responses of one prompt whose video fills most of its tokens; G rows a prompt repeat the vision
tower and the prefill G times and read G copies of the prompt's keys at every step. Here the prompts are prefilled once
each (left-padded into one batch); a decoding step is then one row a prompt with G new tokens, one of each response. The
row's keys are the prompt's, once, followed by those of all responses in order of time, and a mask lets each response
see the prompt and itself. Keys are written in place into a buffer with room for the responses, never grown by
copying.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import Cache, CacheLayerMixin

from zoomzero.models.qwen2_5_vl import EncodedPrompt, embed_tokens


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    num_generations: responses a prompt (G); max_new_tokens: longest response; temperature: 0 takes the most likely
    token (log-probabilities are then those at temperature 1); eos_token_ids end a response and belong to it;
    pad_token_id fills the rest of its row; num_top_logps: keep that many largest log-probabilities a token, for
    confidence.
    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    num_generations: int = 1
    temperature: float = 1.0
    num_top_logps: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"SamplingOptions: {name} must be at least 1, got {getattr(self, name)}; raise it")
        if not self.temperature >= 0:
            raise ValueError(
                f"SamplingOptions: temperature must be >= 0, got {self.temperature}; use 0 for the most likely token"
            )
        if not self.eos_token_ids:
            raise ValueError(
                "SamplingOptions: eos_token_ids must name at least one token, got none; pass tokenizer.eos_token_id"
            )


@dataclass(frozen=True)
class Rollouts:
    """P * G responses, the G of one prompt next to each other.

    token_ids int64 [P*G, T], padded; mask bool [P*G, T], true up to and with the end token; logps float32 [P*G, T] of
    the tokens under the sampling distribution, 0 on padding; stopped bool [P*G], false where max_new_tokens cut the
    response; top_logps float32 [P*G, T, k] or None.
    """

    token_ids: Tensor
    mask: Tensor
    logps: Tensor
    stopped: Tensor
    top_logps: Tensor | None = None

    def select(self, rows: Sequence[int]) -> "Rollouts":
        """Some of the responses, padded as before."""
        index = torch.tensor(rows, dtype=torch.long, device=self.token_ids.device)
        top_logps = None if self.top_logps is None else self.top_logps[index]
        return Rollouts(self.token_ids[index], self.mask[index], self.logps[index], self.stopped[index], top_logps)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Decoded responses, special tokens dropped."""
        rows = [ids[keep].tolist() for ids, keep in zip(self.token_ids, self.mask, strict=True)]
        return tokenizer.batch_decode(rows, skip_special_tokens=True)


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


def _prefill(
    model: Qwen2_5_VLForConditionalGeneration, prompts: Sequence[EncodedPrompt], cache: Cache | None
) -> tuple[Tensor, Tensor]:
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
    embeds = embed_tokens(model, input_ids, is_video, [prompt.features for prompt in prompts])
    outputs = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=position_ids,
        attention_mask=None if bool(keep.all()) else keep.long(),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    return outputs.last_hidden_state[:, -1], keep


@torch.no_grad()
def next_token_logps(model: Qwen2_5_VLForConditionalGeneration, prompts: Sequence[EncodedPrompt]) -> Tensor:
    """Log-probabilities float32 [P, V] of the token after each prompt, prompts of any lengths in one forward.

    The zoom pass reads its answer from this (single greedy token), inference reads an answer's confidence.
    """
    if not prompts:
        raise ValueError("next_token_logps: needs at least one prompt, got none; skip the call for an empty batch")
    with evaluation_mode(model):
        hidden, _ = _prefill(model, prompts, cache=None)
        return model.lm_head(hidden).float().log_softmax(-1)


@torch.no_grad()
def generate(
    model: Qwen2_5_VLForConditionalGeneration,
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
        hidden, keep = _prefill(model, prompts, cache)
        starts = torch.tensor([prompt.next_position for prompt in prompts], device=keep.device)
        return _decode(model, cache, hidden, _group_mask(keep, group_size, room), starts, options, generator)


def _group_mask(keep: Tensor, group_size: int, room: int) -> Tensor:
    """keep bool [P, L] -> bool [P, 1, G, L + room]: response g sees its prompt and every G-th later key, its own."""
    own = torch.eye(group_size, dtype=torch.bool, device=keep.device).repeat(1, room // group_size)
    prompt = keep[:, None, None].expand(-1, 1, group_size, -1)
    return torch.cat((prompt, own.expand(len(keep), 1, -1, -1)), dim=-1)


def _decode(
    model: Qwen2_5_VLForConditionalGeneration,
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


def additive_mask(model: Qwen2_5_VLForConditionalGeneration, mask: Tensor) -> Tensor:
    """Turn a boolean 4-D mask into what the language model's attention takes: SDPA boolean, eager additive.

    ValueError for other attention implementations: they take no 4-D mask.
    """
    implementation = model.model.language_model.config._attn_implementation
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
