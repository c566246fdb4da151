"""Zooming with a way back: spans side by side, then narrower, elsewhere or wider where the model is not sure."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from zoomzero.intervals import Span

if TYPE_CHECKING:
    from zoomzero.answering.answer import Pass, Verdict
    from zoomzero.answering.scene import Ask, Scene

# A zoomed answer more likely than not, and no less likely than the one before, ends the search.
SURE = 0.5
# A span is long where the frames shown of it are fewer than this share of those that its sampling rate would give.
DENSE = 0.5
WIDER = 2.0


@dataclasses.dataclass
class _Search:
    """What was looked at, and what is left."""

    scene: Scene
    first: Ask
    """The first pass, of whose tokens some are kept beside the zoomed frames."""
    waiting: list[Span]
    """Spans that the first pass named and that nobody has looked at."""
    cited: list[Span]
    """Spans that its thinking cites beside those, likewise; their turn comes when no named one waits."""
    seen: set[tuple[Span, ...]] = dataclasses.field(default_factory=set)
    """Sets of spans that were zoomed into."""

    def looks(self, spans: Sequence[tuple[Span, ...]], why: str, budget_tokens: int) -> list[Ask]:
        """Zooms into several sets of spans, each with the budget and tokens of the first pass within it."""
        self.seen.update(spans)
        kept = int(budget_tokens * self.scene.kept_share)
        if budget_tokens - kept < self.scene.min_zoom_tokens:
            kept = 0
        return [
            self.scene.zoom(some, why=why, budget_tokens=budget_tokens - kept, kept=(self.first, kept))
            for some in spans
        ]

    def first_looks(self) -> list[Ask]:
        """The spans that the first pass named side by side, each with its share of one budget."""
        budget, why = self.scene.zoom_tokens, "the spans that the first pass named, side by side"
        if not self.waiting:
            self.waiting, self.cited = self.cited, []
            why = "no span was named: those that its thinking cites, side by side"
        count = max(1, min(len(self.waiting), self.scene.options.max_spans, budget // self.scene.min_zoom_tokens))
        first, self.waiting = self.waiting[:count], self.waiting[count:]
        if not first:
            return self.looks([()], "no span was named: the whole video again", budget)
        return self.looks([(span,) for span in first], why, budget // count)

    def next_looks(self, zoom: Pass) -> list[Ask]:
        """Where to look after a zoom that was not sure; nothing where nothing is left."""
        span = _hull(zoom.looked_at, self.scene.duration)
        budget, middle = self.scene.zoom_tokens, sum(span) / 2
        halves = [((span[0], middle),), ((middle, span[1]),)]
        if self._is_long(zoom, span) and not self.seen & set(halves):
            return self.looks(halves, "the span is long for its frames: each half on its own", budget)
        if self.waiting:
            return self.looks([(self.waiting.pop(0),)], "not sure: the next span that the first pass named", budget)
        if self.cited:
            return self.looks([(self.cited.pop(0),)], "not sure: a span that the first pass's thinking cites", budget)
        wider = _widened(span, self.scene.duration)
        if wider != span and (wider,) not in self.seen:
            return self.looks([(wider,)], f"not sure: the span {WIDER:g} times as wide", budget)
        return []

    def _is_long(self, zoom: Pass, span: Span) -> bool:
        return len(zoom.plan.timestamps) < DENSE * (span[1] - span[0]) * self.scene.zoom_fps


def rounds(scene: Scene) -> Generator[Sequence[Ask], Sequence[Pass], Verdict]:
    """Beyond the paper: a zoom that finds nothing is followed by others, up to `max_rounds`.

    The first zoom looks at up to `max_spans` spans that the first pass named, side by side, each with its share of the
    zoom's budget; part of each (the settings' `kept_share`) holds tokens of the first pass, averaged down and not
    encoded again. While the surest zoom is less sure than the pass before it, or than a coin, another round follows:
    into the halves of a span that is long for its frames, else to the next span named, else to one that the first
    pass's thinking cites, else around the span twice as wide. The most confident zoom answers; its span is the
    evidence, or all that were named if it is of the first zoom.
    """
    whole = scene.whole()
    (coarse,) = yield [whole]
    search = _Search(scene, whole, list(coarse.spans), list(coarse.cited))
    before = coarse.confidence
    asks = search.first_looks()
    best, evidence = coarse, coarse.spans
    for number in range(scene.options.max_rounds + 1):
        zooms = yield asks
        surest = max(zooms, key=lambda zoom: zoom.confidence)
        if best is coarse or surest.confidence > best.confidence:
            best, evidence = surest, surest.looked_at if number else coarse.spans or surest.looked_at
        if surest.confidence >= max(SURE, before) or number == scene.options.max_rounds:
            break
        before = surest.confidence
        asks = search.next_looks(surest)
        if not asks:
            break
    return scene.verdict(best, evidence)


def _hull(spans: Sequence[Span], duration: float) -> Span:
    return (spans[0][0], spans[-1][1]) if spans else (0.0, duration)


def _widened(span: Span, duration: float) -> Span:
    """The span made wider about its middle, inside the video."""
    more = (span[1] - span[0]) * (WIDER - 1) / 2
    return max(0.0, span[0] - more), min(duration, span[1] + more)
