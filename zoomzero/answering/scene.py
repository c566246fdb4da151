"""What a strategy knows of a query, and the looks that it can ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from zoomzero.answering.answer import AnswerOptions, Pass, Verdict
from zoomzero.answering.subtitles import Subtitles
from zoomzero.inputs import FramePlanner
from zoomzero.intervals import Span
from zoomzero.looks import Context, Look
from zoomzero.prompts import Inquiry
from zoomzero.video import Video


@dataclasses.dataclass(frozen=True)
class Ask:
    """One look that a strategy asks for."""

    name: str
    """"coarse", "zoom" or "chunk"."""
    look: Look
    """Which frames, and what is asked."""
    why: str
    """Why it is made, for the record."""
    looked_at: tuple[Span, ...] = ()
    """The spans whose frames are seen; empty for the whole video."""
    writes: bool = True
    """The model writes a response; else it is asked for the letter alone, in one forward."""
    clock_start: float = 0.0
    """Second of the video that the model takes for 0."""

    @property
    def video(self) -> Video:
        """The open video that is looked at."""
        if not isinstance(self.look.video, Video):
            raise TypeError(f"answer: looks must bring their video open, got {self.look.video!r}; open it first")
        return self.look.video


@dataclasses.dataclass(frozen=True)
class Scene:
    """A video that is open, and what is asked about it."""

    video: Video
    """The open video."""
    inquiry: Inquiry
    """Question and options; subtitles of the whole video."""
    subtitles: Subtitles | None
    """What is said when, to be cut to parts of the video."""
    options: AnswerOptions
    """How to answer."""
    planner: FramePlanner
    """Plans frames."""
    can_keep_tokens: bool = True
    """Whether the model takes tokens of an earlier pass beside the frames of another."""

    @property
    def duration(self) -> float:
        """Seconds of the video."""
        return self.video.duration

    @property
    def zoom_tokens(self) -> int:
        """Budget of a zoom pass, in visual tokens."""
        return self.options.budget_tokens or self.planner.settings.zoom.budget_tokens

    @property
    def zoom_fps(self) -> float:
        """Frames per second that a zoom pass chooses from."""
        return self.planner.settings.zoom.sample_fps

    @property
    def min_zoom_tokens(self) -> int:
        """Fewest visual tokens that a zoom pass can do with."""
        return self.planner.settings.zoom.min_frame_tokens

    @property
    def kept_share(self) -> float:
        """Share of a zoom pass's budget for tokens of an earlier pass."""
        return self.planner.settings.kept_share if self.can_keep_tokens else 0.0

    @property
    def chunk_seconds(self) -> float:
        """Length of a part of which the coarse pass can see every frame that it chooses from."""
        coarse = self.planner.settings.coarse
        return min(self.options.chunk_frames, coarse.max_frames) / coarse.sample_fps

    def whole(self) -> Ask:
        """The coarse pass over the whole video."""
        plan = self.planner.plan(self.video, budget_tokens=self.options.budget_tokens)
        return Ask("coarse", Look(self.video, self.inquiry, plan, zoomed=False), "the whole video first")

    def chunk(self, span: Span, *, why: str) -> Ask:
        """The coarse pass over a part of the video, with what is said in it."""
        plan = self.planner.plan(self.video, [span], zoomed=False, budget_tokens=self.options.budget_tokens)
        said = "" if self.subtitles is None else self.subtitles.text(*span)
        # Where the prompt does not name the frames' times, positions count from the first frame.
        start = 0.0 if self.planner.geometry.times_in_prompt else span[0]
        inquiry = dataclasses.replace(self.inquiry, duration=span[1] - span[0], subtitles=said)
        look = Look(self.video, inquiry, plan, zoomed=False)
        return Ask("chunk", look, why, looked_at=(span,), clock_start=start)

    def zoom(
        self,
        spans: Sequence[Span],
        *,
        why: str,
        budget_tokens: int | None = None,
        kept: tuple[Ask, int] | None = None,
    ) -> Ask:
        """The zoom pass: frames inside the spans, the whole video's where there is none.

        budget_tokens: of the frames; the pass's whole budget unless told. kept: an earlier look, and at most how many
        of its tokens, averaged down, stand before the frames.
        """
        plan = self.planner.plan(self.video, spans, budget_tokens=budget_tokens or self.options.budget_tokens)
        inquiry = dataclasses.replace(self.inquiry, subtitles="")
        context = Context(kept[0].look, kept[1]) if kept is not None and kept[1] else None
        look = Look(self.video, inquiry, plan, zoomed=True, context=context)
        return Ask("zoom", look, why, looked_at=tuple(spans), writes=self.inquiry.options is None)

    def verdict(self, said: Pass, spans: Sequence[Span]) -> Verdict:
        """A pass's answer, with the evidence for it."""
        return Verdict(said.letter, said.words, said.confidence, tuple(spans))
