"""Sampling groups of responses: what every sampler takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zoomzero.models.encoding import EncodedPrompt


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample."""

    max_new_tokens: int
    """Longest response, in tokens."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a response, and belong to it."""
    pad_token_id: int
    """Fills the rest of an ended response's row."""
    num_generations: int = 1
    """Responses per prompt (G)."""
    temperature: float = 1.0
    """0 takes the most likely token; log-probabilities are then those at temperature 1."""
    num_top_logps: int = 0
    """Keep that many largest log-probabilities per token, for confidence."""
    max_prefill_tokens: int | None = None
    """Most tokens of prompts in one forward of our own loop; None prefills all prompts at once."""

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
    """P * G responses of at most T tokens, the G of one prompt next to each other."""

    token_ids: Tensor
    """int64 [P*G, T], padded."""
    mask: Tensor
    """bool [P*G, T], true up to and with the end token."""
    logps: Tensor
    """float32 [P*G, T]: of the tokens under the sampling distribution, 0 on padding."""
    stopped: Tensor
    """bool [P*G], false where max_new_tokens cut the response."""
    top_logps: Tensor | None = None
    """float32 [P*G, T, k], where they were asked for."""

    def select(self, rows: Sequence[int]) -> Rollouts:
        """Some of the responses, padded as before."""
        index = torch.tensor(rows, dtype=torch.long, device=self.token_ids.device)
        top_logps = None if self.top_logps is None else self.top_logps[index]
        return Rollouts(self.token_ids[index], self.mask[index], self.logps[index], self.stopped[index], top_logps)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Decoded responses, special tokens dropped."""
        rows = [ids[keep].tolist() for ids, keep in zip(self.token_ids, self.mask, strict=True)]
        return tokenizer.batch_decode(rows, skip_special_tokens=True)


class Sampler(Protocol):
    """Samples groups of responses from a policy: our own loop, or an inference engine that holds its weights."""

    def __call__(
        self, prompts: Sequence[EncodedPrompt], options: SamplingOptions, generator: torch.Generator | None = None
    ) -> Rollouts:
        """`options.num_generations` responses of every prompt, those of a prompt next to each other.

        generator: random numbers for reproducible sampling; None uses torch's global state.
        """
