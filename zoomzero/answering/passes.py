"""Looks of many queries in one forward: the model writes a response to them, or says a letter."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.answering.answer import AnswerOptions, Cost, Pass
from zoomzero.answering.cost import text_flops, vision_flops
from zoomzero.answering.scene import Ask
from zoomzero.inputs import VideoInputs
from zoomzero.intervals import Span, inside_video
from zoomzero.lenient import read_citations, read_letter, read_spans
from zoomzero.looks import PreparedPrompt, through_tower
from zoomzero.looks.encoder import PromptEncoder
from zoomzero.looks.videos import OpenVideos
from zoomzero.models.forward import next_token_logps
from zoomzero.models.tokens import end_token_ids
from zoomzero.responses import ANSWER, SPAN, parse, token_segments
from zoomzero.rollouts import Rollouts, SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.video import Video, VideoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bound of the features kept within one call: at the published budget four coarse passes of a 7B model in bfloat16.
FEATURE_BYTES = 1 << 28
# A span's confidence is read from that many of the largest log-probabilities of its tokens.
NUM_TOP_LOGPS = 20


@dataclasses.dataclass(frozen=True)
class Said:
    """What came of one look."""

    made: Pass | VideoError
    """The pass, or why the look's frames cannot be read."""
    timings: dict[str, float]
    """Seconds by step, the look's share: "read", "encode", "generate"."""


@dataclasses.dataclass(frozen=True)
class _Words:
    """What the model wrote or chose, before it is put into a `Pass`."""

    text: str
    num_written: int
    letter: str | None = None
    words: str | None = None
    confidence: float = 0.0
    spans: tuple[Span, ...] = ()
    cited: tuple[Span, ...] = ()
    span_confidence: float = 0.0


class Passes:
    """Runs looks through a model; what the vision tower gave is kept until `forget`."""

    def __init__(self, model: PreTrainedModel, processor: VideoInputs) -> None:
        self.model = model
        self.processor = processor
        self._end_token_ids = end_token_ids(model, processor.tokenizer)
        self.videos = OpenVideos()
        self._encoder = PromptEncoder(processor, model, self.videos, freeze_vision=True, feature_bytes=FEATURE_BYTES)

    def forget(self) -> None:
        """Let go of frames and features: the model's weights may change before the next call."""
        self.videos.clear()
        self._encoder.forget()

    @torch.no_grad()
    def run(self, asks: Sequence[Ask], options: AnswerOptions) -> list[Said]:
        """One forward for all looks, which either all write or all choose a letter."""
        started, read_before = time.perf_counter(), self._encoder.read_seconds
        frames = [self._seen(ask) if options.keep_frames else None for ask in asks]
        prepared = self._encoder.prepare([ask.look for ask in asks])
        readable = [place for place, prompt in enumerate(prepared) if isinstance(prompt, PreparedPrompt)]
        prompts = [prompt for prompt in prepared if isinstance(prompt, PreparedPrompt)]
        encoded = time.perf_counter()
        words: list[_Words] = []
        if prompts:
            kept = [asks[place] for place in readable]
            words = self._write(kept, prompts, options) if kept[0].writes else self._choose(kept, prompts)
        ended, read = time.perf_counter(), self._encoder.read_seconds - read_before
        timings = {"read": read, "encode": encoded - started - read, "generate": ended - encoded}
        share = {step: seconds / len(asks) for step, seconds in timings.items()}
        said: list[Said] = [Said(prompt, share) for prompt in prepared if isinstance(prompt, VideoError)]
        made: dict[int, Pass] = {
            place: self._pass(asks[place], prompt, spoken, sum(share.values()), frames[place])
            for place, prompt, spoken in zip(readable, prompts, words, strict=True)
        }
        errors = iter(said)
        return [Said(made[place], share) if place in made else next(errors) for place in range(len(asks))]

    def _seen(self, ask: Ask) -> Tensor | None:
        """The look's frames as the model sees them; None if they cannot be read, which `prepare` then says."""
        video = ask.look.video
        if not isinstance(video, Video):
            raise TypeError(f"answer: looks must bring their video open, got {type(video).__name__}; open it first")
        try:
            patches = self.videos.take_patches(ask.look.frames_key) or self.processor.read(video, ask.look.plan)
        except VideoError:
            return None
        self.videos.add(video, patches)
        return self.processor.seen_frames(patches)

    def _pass(self, ask: Ask, prompt: PreparedPrompt, said: _Words, seconds: float, frames: Tensor | None) -> Pass:
        is_video = prompt.input_ids == self.processor.video_token_id
        num_visual, num_prompt = int(is_video.sum()), prompt.input_ids.numel()
        # The last of a prompt's videos is the look's own; tokens of an earlier look are not encoded again.
        steps, rows, columns = (int(side) for side in prompt.grid_thw[-1])
        flops = vision_flops(self.model.config, (steps, rows, columns)) + text_flops(
            self.model.config, num_prompt, said.num_written
        )
        return Pass(
            name=ask.name,
            plan=ask.look.plan,
            text=said.text,
            letter=said.letter,
            confidence=said.confidence,
            cost=Cost(num_visual, num_prompt - num_visual + said.num_written, seconds, flops),
            words=said.words,
            spans=said.spans,
            cited=said.cited,
            span_confidence=said.span_confidence,
            looked_at=ask.looked_at,
            why=ask.why,
            frames=frames,
        )

    # -- the letter alone --------------------------------------------------------------------------------------------

    def _choose(self, asks: Sequence[Ask], prompts: Sequence[PreparedPrompt]) -> list[_Words]:
        logps = next_token_logps(self.model, through_tower(self.model, prompts))
        found = []
        for ask, row in zip(asks, logps, strict=True):
            letters = ask.look.inquiry.letters
            choices = row[self._letter_ids(letters)]
            best = int(choices.argmax())
            found.append(_Words(letters[best], 1, letters[best], confidence=float(choices[best].exp())))
        return found

    def _letter_ids(self, letters: str) -> list[int]:
        ids = [self.processor.tokenizer(letter, add_special_tokens=False).input_ids for letter in letters]
        for letter, tokens in zip(letters, ids, strict=True):
            if len(tokens) != 1:
                raise ValueError(
                    f"answer: an option's letter must be one token, got {len(tokens)} for {letter!r}; ask with fewer "
                    "options, or use another checkpoint"
                )
        return [tokens[0] for tokens in ids]

    # -- a response --------------------------------------------------------------------------------------------------

    def _write(self, asks: Sequence[Ask], prompts: Sequence[PreparedPrompt], options: AnswerOptions) -> list[_Words]:
        tokenizer = self.processor.tokenizer
        sampling = SamplingOptions(
            max_new_tokens=options.max_new_tokens,
            eos_token_ids=self._end_token_ids,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            temperature=0.0,
            num_top_logps=min(NUM_TOP_LOGPS, self.model.config.get_text_config().vocab_size),
        )
        rollouts = generate(self.model, through_tower(self.model, prompts), sampling)
        return [self._read_response(ask, rollouts.select([row])) for row, ask in enumerate(asks)]

    def _read_response(self, ask: Ask, rollout: Rollouts) -> _Words:
        """rollout: one response."""
        keep = rollout.mask[0]
        ids, logps = rollout.token_ids[0][keep].tolist(), rollout.logps[0][keep]
        own = [place for place, token in enumerate(ids) if token not in self._end_token_ids]
        # Tags stay, whether special tokens or not.
        text = str(
            self.processor.tokenizer.decode(
                [ids[place] for place in own], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        inquiry = ask.look.inquiry
        if inquiry.options is None and ask.look.zoomed:
            words = text.strip() or None
            return _Words(text, len(ids), None, words, _mean_probability(logps, own) if words else 0.0)
        response = parse(text)
        segments = token_segments(ids, self.processor.tokenizer, response)
        answer_places = (segments == ANSWER).nonzero().flatten().tolist()
        letter, words, confidence = None, None, 0.0
        if inquiry.options is None:
            if response.answer_chars is not None:
                words = text[slice(*response.answer_chars)].strip() or None
            confidence = _mean_probability(logps, answer_places) if words else 0.0
        elif (letter := read_letter(response, inquiry.options)) is not None:
            place = self._letter_place(ids, answer_places or own, letter)
            # An answer in the option's own words has no token for its letter.
            confidence = float(logps[place].exp()) if place is not None else _mean_probability(logps, answer_places)
        spans = _spans_of_video(ask, read_spans(response))
        sure = 0.0
        if spans and rollout.top_logps is not None:
            sure = float(-rollout.top_logps[0][keep][segments.to(keep.device) == SPAN].mean())
        cited = _spans_of_video(ask, read_citations(response))
        cited = tuple(span for span in cited if not any(span[0] <= end and start <= span[1] for start, end in spans))
        return _Words(text, len(ids), letter, words, confidence, spans, cited, sure)

    def _letter_place(self, token_ids: Sequence[int], places: Sequence[int], letter: str) -> int | None:
        """Index of the token that holds the answer's letter: tags are lower case, so the first in the element.

        A letter written small is a token of its own.
        """
        texts = [str(self.processor.tokenizer.decode([token_ids[place]])) for place in places]
        held = [place for place, text in zip(places, texts, strict=True) if letter in text]
        small = [place for place, text in zip(places, texts, strict=True) if text.strip(" .:()[]*") == letter.lower()]
        return next(iter(held + small), None)


def _spans_of_video(ask: Ask, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans of a response in seconds of the video, merged and inside what the look was at."""
    video = ask.look.video
    low, high = ask.looked_at[0] if ask.looked_at else (0.0, video.duration if isinstance(video, Video) else 0.0)
    moved = [(start + ask.clock_start, end + ask.clock_start) for start, end in spans]
    return tuple(inside_video(moved, high, low))


def _mean_probability(logps: Tensor, places: Sequence[int]) -> float:
    return float(logps[list(places)].exp().mean()) if places else 0.0
