"""What answering takes and gives: queries, options, passes and answers."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypedDict

from zoomzero.answering.strategies import check_strategy
from zoomzero.limits import MAX_NEW_TOKENS, NUM_DECODERS

if TYPE_CHECKING:
    import torch

    from zoomzero.answering.subtitles import Subtitles
    from zoomzero.budget import FramePlan
    from zoomzero.intervals import Span
    from zoomzero.video import Video


@dataclasses.dataclass(frozen=True)
class Query:
    """A question about a video."""

    video: Video | str | os.PathLike[str]
    """Path, or an open video."""
    question: str
    """The question's text."""
    options: tuple[str, ...] | None = None
    """2 to 8 bare option texts; None for an open question."""
    subtitles: Subtitles | str | os.PathLike[str] | None = None
    """What is said in the video: subtitles, or the path of an .srt file."""


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """How to answer; what a strategy does not know it leaves alone."""

    strategy: str = "coarse_to_fine"
    """Name of a strategy; see `zoomzero.answering.strategies`."""
    budget_tokens: int | None = None
    """Most visual tokens per pass; the checkpoint's own unless told."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Longest response, in tokens."""
    keep_frames: bool = False
    """Also return the frames as the model saw them, in each pass."""
    max_rounds: int = 3
    """For "rounds": most rounds after the first zoom."""
    max_spans: int = 5
    """For "rounds": most spans looked at side by side. For "divide_and_conquer": chunks whose spans are zoomed."""
    chunk_frames: int = 256
    """For "divide_and_conquer": frames per chunk, at the coarse pass's sampling rate."""
    num_decoders: int = NUM_DECODERS
    """Videos read side by side, in threads; answers do not depend on it."""

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        if self.budget_tokens is not None and self.budget_tokens < 1:
            raise ValueError(
                f"answer: budget_tokens must be at least 1, got {self.budget_tokens}; leave it out for the default"
            )
        for name in ("max_new_tokens", "max_rounds", "max_spans", "chunk_frames", "num_decoders"):
            least = 0 if name == "max_rounds" else 1
            if getattr(self, name) < least:
                raise ValueError(f"answer: {name} must be at least {least}, got {getattr(self, name)}; raise it")


class MoreOptions(TypedDict, total=False):
    """Fields of `AnswerOptions` that `ZoomZero.answer` passes on."""

    max_new_tokens: int
    keep_frames: bool
    max_rounds: int
    max_spans: int
    chunk_frames: int
    num_decoders: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one pass costs alone, whatever it shared with others."""

    visual_tokens: int
    """Visual tokens of the prompt, those kept of an earlier pass included."""
    text_tokens: int
    """Text tokens of the prompt, and those written."""
    seconds: float
    """Wall time: reading, encoding and forward passes; in a batch its share."""
    flops: float
    """Floating-point operations by formula of the model's config; see `zoomzero.answering.cost`."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One look at the video and what the model said."""

    name: str
    """"coarse", "zoom" or "chunk"."""
    plan: FramePlan
    """The frames seen."""
    text: str
    """What the model wrote."""
    letter: str | None
    """The option letter; None if it gave none, or if the question is open."""
    confidence: float
    """Probability of the letter's token; for an open question mean probability of the answer's tokens. 0 without an
    answer."""
    cost: Cost
    """What the pass cost."""
    words: str | None = None
    """The answer to an open question."""
    spans: tuple[Span, ...] = ()
    """Spans that the response names, in seconds of the video, merged and inside it."""
    cited: tuple[Span, ...] = ()
    """Spans that its thinking cites and that touch none of `spans`, likewise merged and inside the video."""
    span_confidence: float = 0.0
    """Mean over the spans' tokens of the mean negative log-probability of the 20 most likely tokens: high where the
    distribution is peaked. 0 without spans."""
    looked_at: tuple[Span, ...] = ()
    """The spans whose frames were seen; empty for the whole video."""
    why: str = ""
    """Why the strategy made the pass."""
    frames: torch.Tensor | None = None
    """uint8 [n, h, w, 3] as the model saw them, where they were asked for."""

    @property
    def has_answer(self) -> bool:
        """Whether the model gave an answer of the kind that was asked for."""
        return self.letter is not None or bool(self.words)

    def as_dict(self) -> dict[str, Any]:
        """The pass in JSON's types, frames left out."""
        return {
            "name": self.name,
            "why": self.why,
            "looked_at": [list(span) for span in self.looked_at],
            "num_frames": len(self.plan.timestamps),
            "timestamps": [round(time, 3) for time in self.plan.timestamps],
            "size": list(self.plan.size),
            "num_tokens": self.plan.num_tokens,
            "text": self.text,
            "letter": self.letter,
            "words": self.words,
            "confidence": self.confidence,
            "spans": [list(span) for span in self.spans],
            "cited": [list(span) for span in self.cited],
            "cost": dataclasses.asdict(self.cost),
        }


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a strategy ends with."""

    letter: str | None
    """The option letter; None if no pass gave one, or if the question is open."""
    words: str | None
    """The answer to an open question."""
    confidence: float
    """As the pass's that the answer comes from."""
    spans: tuple[Span, ...]
    """The evidence, in seconds."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one query."""

    letter: str | None
    """The option letter; None if no pass gave one, or if the question is open."""
    text: str | None
    """The answer in words: the option's text, or what the model wrote to an open question; None without an answer."""
    spans: tuple[Span, ...]
    """Evidence in seconds, merged and inside the video."""
    confidence: float
    """Of the pass that the answer comes from; see `Pass.confidence`."""
    passes: list[Pass]
    """All passes, in order."""
    timings: dict[str, float]
    """Seconds by step: "read", "encode", "generate"; in a batch the query's share."""

    @property
    def cost(self) -> tuple[Cost, ...]:
        """What each pass cost, in their order."""
        return tuple(look.cost for look in self.passes)

    @property
    def total_cost(self) -> Cost:
        """The sum over all passes."""
        names = [field.name for field in dataclasses.fields(Cost)]
        return Cost(**{name: sum(getattr(cost, name) for cost in self.cost) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """The answer in JSON's types, frames left out."""
        return {
            "letter": self.letter,
            "text": self.text,
            "spans": [list(span) for span in self.spans],
            "confidence": self.confidence,
            "passes": [look.as_dict() for look in self.passes],
            "timings": self.timings,
            "cost": dataclasses.asdict(self.total_cost),
        }
