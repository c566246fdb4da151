"""How an evaluation answers its questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoomzero.answering.answer import AnswerOptions, MoreOptions
from zoomzero.limits import MAX_SKIPPED_FRACTION, TIME_LIMIT_SECONDS
from zoomzero.skipping import check_skipped_fraction


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How to answer, how many at a time, and what to do with videos that cannot be read."""

    answers: AnswerOptions = dataclasses.field(default_factory=AnswerOptions)
    """Strategy, budget and bounds of each answer."""
    batch_size: int = 1
    """Samples that share a forward; results do not depend on it beyond rounding."""
    use_subtitles: bool = False
    """Put the samples' subtitles into the prompts."""
    max_skipped_fraction: float = MAX_SKIPPED_FRACTION
    """Share of samples whose video may be unreadable; they count as wrong and are listed."""
    time_limit: float | None = TIME_LIMIT_SECONDS
    """Seconds after which a decoder that gives no sign of life is stopped and its video is unreadable, None to decode
    in this process; see `zoomzero.video.open_video`."""
    read_ahead: int | None = None
    """Videos read before their turn, each held as its coarse pass's patches; batch_size or num_decoders, whichever is
    more, unless told."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(
                f"evaluate: batch_size must be at least 1, got {self.batch_size}; 1 needs the least memory"
            )
        check_skipped_fraction("evaluate", self.max_skipped_fraction)

    @property
    def num_ahead(self) -> int:
        """Videos read before their turn."""
        return max(self.batch_size, self.answers.num_decoders) if self.read_ahead is None else self.read_ahead

    def changed(self, changes: Mapping[str, Any]) -> EvaluationSettings:
        """The settings with other values of their own fields, or of those of `answers`.

        Raises:
            TypeError: a name that is no field.
        """
        names = {field.name for field in dataclasses.fields(AnswerOptions)}
        answers = {name: value for name, value in changes.items() if name in names}
        own = {name: value for name, value in changes.items() if name not in names}
        return dataclasses.replace(self, **{"answers": dataclasses.replace(self.answers, **answers), **own})


class EvaluationChanges(MoreOptions, total=False):
    """Fields of `EvaluationSettings` and its `AnswerOptions` that `evaluate` takes by name."""

    strategy: str
    budget_tokens: int | None
    batch_size: int
    use_subtitles: bool
    max_skipped_fraction: float
    time_limit: float | None
    read_ahead: int | None
