"""The whole video first, then a second look at the spans that the first one named."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoomzero.answering.answer import Pass, Verdict
    from zoomzero.answering.scene import Ask, Scene


def coarse_to_fine(scene: Scene) -> Generator[Sequence[Ask], Sequence[Pass], Verdict]:
    """Find the evidence in the whole video, then answer from its frames alone (Zoom-Zero's two passes).

    A first look that names no span is followed by one at about twenty frames of the whole video.
    """
    (coarse,) = yield [scene.whole()]
    why = "the spans that the whole video's pass named" if coarse.spans else "no span was named: the whole video again"
    (zoom,) = yield [scene.zoom(coarse.spans, why=why)]
    return scene.verdict(zoom, coarse.spans)
