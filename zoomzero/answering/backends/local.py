"""The model in this process: frames through our vision tower, responses from our own loop or from another sampler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from zoomzero.answering.backends import Chosen, Spent, Spoken, Written
from zoomzero.answering.cost import text_flops, vision_flops
from zoomzero.budget import FramePlan
from zoomzero.inputs import VideoInputs
from zoomzero.limits import FORWARD_TOKENS
from zoomzero.looks import PreparedPrompt, frames_key, through_tower
from zoomzero.looks.encoder import PromptEncoder
from zoomzero.looks.videos import OpenVideos
from zoomzero.models.encoding import EncodedPrompt
from zoomzero.models.forward import next_token_logps
from zoomzero.models.tokens import end_token_ids
from zoomzero.rollouts import Rollouts, SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.video import Video, VideoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zoomzero.answering.scene import Ask
    from zoomzero.patches import VideoPatches

# Bound of the features kept within one call: at the published budget four coarse passes of a 7B model in bfloat16.
FEATURE_BYTES = 1 << 28
# A span's confidence is read from that many of the largest log-probabilities of its tokens.
NUM_TOP_LOGPS = 20


class LanguageModel(Protocol):
    """The language model behind the features: it writes, and says how likely a token is next."""

    def write(self, prompts: Sequence[EncodedPrompt], options: SamplingOptions) -> Rollouts:
        """One response per prompt."""

    def next_logps(self, prompts: Sequence[EncodedPrompt], token_ids: Sequence[int]) -> Tensor:
        """Log-probabilities float32 [P, n] of the tokens `token_ids` [n] behind each prompt."""


class OwnLanguageModel:
    """The model itself, run by our own loop.

    forward_tokens: most tokens of prompts in one forward; see Note [A bound in tokens] in models/batches.py.
    """

    def __init__(self, model: PreTrainedModel, forward_tokens: int = FORWARD_TOKENS) -> None:
        self._model, self._forward_tokens = model, forward_tokens

    def write(self, prompts: Sequence[EncodedPrompt], options: SamplingOptions) -> Rollouts:
        """As `LanguageModel`."""
        return generate(self._model, prompts, replace(options, max_prefill_tokens=self._forward_tokens))

    def next_logps(self, prompts: Sequence[EncodedPrompt], token_ids: Sequence[int]) -> Tensor:
        """As `LanguageModel`."""
        return next_token_logps(self._model, prompts, self._forward_tokens)[:, list(token_ids)]


class LocalBackend:
    """A `Backend` over a model whose vision tower runs here; features of frames are kept until it is dropped.

    Args:
        model: its vision tower, positions and config are used.
        processor: writes prompts.
        language_model: takes them; the model itself unless told.
        num_decoders: looks whose frames are read side by side.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: VideoInputs,
        language_model: LanguageModel | None = None,
        num_decoders: int = 1,
    ) -> None:
        self._model = model
        self._processor = processor
        self._language_model = language_model or OwnLanguageModel(model)
        self._end_token_ids = end_token_ids(model, processor.tokenizer)
        self._videos = OpenVideos()
        self._encoder = PromptEncoder(
            processor,
            model,
            self._videos,
            freeze_vision=True,
            feature_bytes=FEATURE_BYTES,
            num_decoders=num_decoders,
        )

    def add(self, video: Video, patches: VideoPatches) -> None:
        """As `Backend`."""
        self._videos.add(video, patches)

    def frames(self, video: Video, plan: FramePlan) -> Tensor:
        """As `Backend`; what was read stays for `speak`."""
        patches = self._videos.take_patches(frames_key(video, plan)) or self._processor.read(video, plan)
        self._videos.add(video, patches)
        return self._processor.seen_frames(patches)

    @torch.no_grad()
    def speak(self, asks: Sequence[Ask], max_new_tokens: int) -> tuple[list[Spoken | VideoError], dict[str, float]]:
        """As `Backend`, in one forward."""
        started, read_before = time.perf_counter(), self._encoder.read_seconds
        prepared = self._encoder.prepare([ask.look for ask in asks])
        readable = [(ask, one) for ask, one in zip(asks, prepared, strict=True) if isinstance(one, PreparedPrompt)]
        encoded = time.perf_counter()
        said = iter(self._say([ask for ask, _ in readable], [one for _, one in readable], max_new_tokens))
        spoken: list[Spoken | VideoError] = [
            next(said) if isinstance(prompt, PreparedPrompt) else prompt for prompt in prepared
        ]
        ended, read = time.perf_counter(), self._encoder.read_seconds - read_before
        return spoken, {"read": read, "encode": encoded - started - read, "generate": ended - encoded}

    def close(self) -> None:
        """As `Backend`."""
        self._encoder.close()

    def _say(self, asks: Sequence[Ask], prompts: Sequence[PreparedPrompt], max_new_tokens: int) -> list[Spoken]:
        if not prompts:
            return []
        encoded = through_tower(self._model, prompts)
        if not asks[0].writes:
            return [
                Spoken(said, self._spent(one, 1))
                for said, one in zip(self._choose(asks, encoded), prompts, strict=True)
            ]
        tokenizer = self._processor.tokenizer
        sampling = SamplingOptions(
            max_new_tokens=max_new_tokens,
            eos_token_ids=self._end_token_ids,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            temperature=0.0,
            num_top_logps=min(NUM_TOP_LOGPS, self._model.config.get_text_config().vocab_size),
        )
        rollouts = self._language_model.write(encoded, sampling)
        counts = rollouts.mask.sum(dim=1).tolist()
        return [
            Spoken(self._written(rollouts, row), self._spent(prompt, counts[row])) for row, prompt in enumerate(prompts)
        ]

    def _choose(self, asks: Sequence[Ask], prompts: Sequence[EncodedPrompt]) -> list[Chosen]:
        most = max((ask.look.inquiry.letters for ask in asks), key=len)
        logps = self._language_model.next_logps(prompts, self._letter_ids(most))
        chosen = []
        for ask, row in zip(asks, logps, strict=True):
            letters = ask.look.inquiry.letters
            best = int(row[: len(letters)].argmax())
            chosen.append(Chosen(letters[best], float(row[best].exp())))
        return chosen

    def _letter_ids(self, letters: str) -> list[int]:
        ids = [self._processor.tokenizer(letter, add_special_tokens=False).input_ids for letter in letters]
        for letter, tokens in zip(letters, ids, strict=True):
            if len(tokens) != 1:
                raise ValueError(
                    f"answer: an option's letter must be one token, got {len(tokens)} for {letter!r}; ask with fewer "
                    "options, or use another checkpoint"
                )
        return [tokens[0] for tokens in ids]

    def _written(self, rollouts: Rollouts, row: int) -> Written:
        keep = rollouts.mask[row] & ~torch.isin(
            rollouts.token_ids[row], torch.tensor(self._end_token_ids, device=rollouts.token_ids.device)
        )
        ids: list[int] = rollouts.token_ids[row][keep].tolist()
        tokenizer = self._processor.tokenizer
        # Tags stay, whether special tokens or not.
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        top = None if rollouts.top_logps is None else rollouts.top_logps[row][keep].cpu()
        return Written(text, ids, tokenizer, rollouts.logps[row][keep].cpu(), top)

    def _spent(self, prompt: PreparedPrompt, num_written: int) -> Spent:
        num_visual = int((prompt.input_ids == self._processor.video_token_id).sum())
        num_prompt = prompt.input_ids.numel()
        # The last of a prompt's videos is the look's own; tokens of an earlier look are not encoded again.
        steps, rows, columns = (int(side) for side in prompt.grid_thw[-1])
        config = self._model.config
        flops = vision_flops(config, (steps, rows, columns)) + text_flops(config, num_prompt, num_written)
        return Spent(num_visual, num_prompt - num_visual + num_written, flops)
