"""One query's strategy while it runs: what it waits for, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence

from zoomzero.answering.answer import Answer, Pass, Verdict
from zoomzero.answering.passes import Said
from zoomzero.answering.scene import Ask, Scene
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.video import VideoError


class StrategyRun:
    """A strategy's generator that is being run for one query.

    asks: what it waits for; empty when it is done.
    """

    def __init__(self, scene: Scene, read_seconds: float) -> None:
        self.scene = scene
        self.asks: list[Ask] = []
        self._read_seconds = read_seconds
        self._timings = {"read": read_seconds, "encode": 0.0, "generate": 0.0}
        self._passes: list[Pass] = []
        self._said: dict[int, Pass] = {}
        self._end: Verdict | VideoError | None = None
        self._strategy: Generator[Sequence[Ask], Sequence[Pass], Verdict] = STRATEGIES[scene.options.strategy](scene)
        self.asks = list(next(self._strategy))

    def take(self, ask: Ask, said: Said) -> Pass | None:
        """What came of one of the looks; the pass, unless its frames cannot be read."""
        for step, seconds in said.timings.items():
            self._timings[step] += seconds
        if isinstance(said.made, VideoError):
            self._end = self._end or said.made
            return None
        made = said.made
        if self._read_seconds:
            # The first look's frames were read before its turn.
            cost = dataclasses.replace(made.cost, seconds=made.cost.seconds + self._read_seconds)
            made, self._read_seconds = dataclasses.replace(made, cost=cost), 0.0
        self._said[id(ask)] = made
        self._passes.append(made)
        return made

    def advance(self) -> None:
        """Hand the strategy what the model said, if it waits for that."""
        if not self.asks:
            return
        asks, self.asks = self.asks, []
        if self._end is not None:
            self._strategy.close()
            return
        try:
            self.asks = list(self._strategy.send([self._said.pop(id(ask)) for ask in asks]))
        except StopIteration as stop:
            self._end = stop.value

    def result(self) -> Answer | VideoError:
        """The answer, or why there is none."""
        if self._end is None:
            raise RuntimeError(
                f"answer: strategy {self.scene.options.strategy!r} asked for nothing; mend its generator"
            )
        if isinstance(self._end, VideoError):
            return self._end
        end, options = self._end, self.scene.inquiry.options
        text = (
            end.words
            if options is None or end.letter is None
            else options[self.scene.inquiry.letters.index(end.letter)]
        )
        return Answer(end.letter, text, end.spans, end.confidence, self._passes, self._timings)
