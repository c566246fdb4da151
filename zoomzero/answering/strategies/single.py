"""One look at the whole video."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoomzero.answering.answer import Pass, Verdict
    from zoomzero.answering.scene import Ask, Scene


def single(scene: Scene) -> Generator[Sequence[Ask], Sequence[Pass], Verdict]:
    """Answer from the whole video alone; the spans that it names are the evidence."""
    (coarse,) = yield [scene.whole()]
    return scene.verdict(coarse, coarse.spans)
