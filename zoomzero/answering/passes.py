"""From what a model said to passes: letter, words, spans and how sure it was, alike wherever the model runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from zoomzero.answering.answer import AnswerOptions, Cost, Pass
from zoomzero.answering.backends import Backend, Chosen, Spent, Written
from zoomzero.answering.scene import Ask
from zoomzero.intervals import Span, inside_video
from zoomzero.lenient import read_citations, read_letter, read_spans
from zoomzero.responses import ANSWER, SPAN, parse, token_segments
from zoomzero.video import VideoError


@dataclasses.dataclass(frozen=True)
class Said:
    """What came of one look."""

    made: Pass | VideoError
    """The pass, or why the look's frames cannot be read."""
    timings: dict[str, float]
    """Seconds by step, the look's share: "read", "encode", "generate"."""


def run_asks(backend: Backend, asks: Sequence[Ask], options: AnswerOptions) -> list[Said]:
    """Passes of looks which either all write or all choose a letter."""
    frames = [_seen(backend, ask) if options.keep_frames else None for ask in asks]
    spoken, timings = backend.speak(asks, options.max_new_tokens)
    share = {step: seconds / len(asks) for step, seconds in timings.items()}
    seconds, said = sum(share.values()), []
    for ask, one, seen in zip(asks, spoken, frames, strict=True):
        if isinstance(one, VideoError):
            said.append(Said(one, share))
            continue
        made = _chosen(ask, one.said) if isinstance(one.said, Chosen) else _read(ask, one.said)
        said.append(Said(dataclasses.replace(made, cost=_cost(one.spent, seconds), frames=seen), share))
    return said


def _seen(backend: Backend, ask: Ask) -> Tensor | None:
    """The look's frames as the model sees them; None if they cannot be read, which `speak` then says."""
    try:
        return backend.frames(ask.video, ask.look.plan)
    except VideoError:
        return None


def _cost(spent: Spent, seconds: float) -> Cost:
    return Cost(spent.visual_tokens, spent.text_tokens, seconds, spent.flops)


def _pass(ask: Ask, text: str, letter: str | None, confidence: float) -> Pass:
    """A pass over the look; what it costs is filled in by the caller."""
    cost = Cost(0, 0, 0.0, 0.0)
    return Pass(ask.name, ask.look.plan, text, letter, confidence, cost, looked_at=ask.looked_at, why=ask.why)


def _chosen(ask: Ask, said: Chosen) -> Pass:
    return _pass(ask, said.letter or "", said.letter, said.confidence)


def _read(ask: Ask, said: Written) -> Pass:
    """What a response says."""
    inquiry = ask.look.inquiry
    if inquiry.options is None and ask.look.zoomed:
        words = said.text.strip() or None
        sure = _mean_probability(said.logps, range(len(said.token_ids))) if words else 0.0
        return dataclasses.replace(_pass(ask, said.text, None, sure), words=words)
    response = parse(said.text)
    segments = token_segments(said.token_ids, said.decoder, response)
    answer_places = (segments == ANSWER).nonzero().flatten().tolist()
    letter, words, confidence = None, None, 0.0
    if inquiry.options is None:
        if response.answer_chars is not None:
            words = said.text[slice(*response.answer_chars)].strip() or None
        confidence = _mean_probability(said.logps, answer_places) if words else 0.0
    elif (letter := read_letter(response, inquiry.options)) is not None:
        place = _letter_place(said, answer_places or range(len(said.token_ids)), letter)
        # An answer in the option's own words has no token for its letter.
        confidence = _mean_probability(said.logps, answer_places if place is None else [place])
    spans = _spans_of_video(ask, read_spans(response))
    cited = _spans_of_video(ask, read_citations(response))
    span_places = (segments == SPAN).nonzero().flatten().tolist()
    return dataclasses.replace(
        _pass(ask, said.text, letter, confidence),
        words=words,
        spans=spans,
        cited=tuple(span for span in cited if not any(span[0] <= end and start <= span[1] for start, end in spans)),
        span_confidence=0.0 if not spans or said.top_logps is None else float(-said.top_logps[span_places].mean()),
    )


def _letter_place(said: Written, places: Sequence[int], letter: str) -> int | None:
    """Index of the token that holds the answer's letter: tags are lower case, so the first in the element.

    A letter written small is a token of its own.
    """
    texts = [str(said.decoder.decode([said.token_ids[place]])) for place in places]
    held = [place for place, text in zip(places, texts, strict=True) if letter in text]
    small = [place for place, text in zip(places, texts, strict=True) if text.strip(" .:()[]*") == letter.lower()]
    return next(iter(held + small), None)


def _spans_of_video(ask: Ask, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans of a response in seconds of the video, merged and inside what the look was at."""
    low, high = ask.looked_at[0] if ask.looked_at else (0.0, ask.video.duration)
    moved = [(start + ask.clock_start, end + ask.clock_start) for start, end in spans]
    return tuple(inside_video(moved, high, low))


def _mean_probability(logps: Tensor | None, places: Sequence[int]) -> float:
    """0 without places, and where no log-probabilities are known."""
    return float(logps[list(places)].exp().mean()) if logps is not None and places else 0.0
