"""One annotated question, whatever file it comes from."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question: path of the video, bare option texts, letter of the right option, true spans and duration (s)."""

    video: str
    question: str
    options: tuple[str, ...]
    answer: str
    spans: tuple[tuple[float, float], ...]
    duration: float
