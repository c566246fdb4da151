"""Long videos in parts: each part answers on its own, and the surest parts' spans are zoomed into together."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from zoomzero.intervals import Span, merge

if TYPE_CHECKING:
    from zoomzero.answering.answer import Pass, Verdict
    from zoomzero.answering.scene import Ask, Scene

# As published: spans whose tokens were written with less confidence are not used.
MIN_SPAN_CONFIDENCE = 10.0
# As published: an answer less likely than this gives way to the best part's.
SURE = 0.5


def divide_and_conquer(scene: Scene) -> Generator[Sequence[Ask], Sequence[Pass], Verdict]:
    """Zoom-Zero's strategy for long video (arXiv 2512.14273).

    The whole video and each part of it (`chunk_frames` frames at the coarse pass's rate, but no more than that pass
    takes) are answered with spans and confidence. The spans of the `max_spans` parts whose answers are the most
    confident are zoomed into together; the zoom's answer or the whole video's is taken, whichever is more confident; if
    that is below one half, the best part's. Subtitles are cut to each part. A video of one part is not asked twice.
    """
    parts = split(scene.duration, scene.chunk_seconds)
    asks = [
        scene.chunk(span, why=f"part {number} of {len(parts)}")
        for number, span in enumerate(parts if len(parts) > 1 else [], start=1)
    ]
    whole, *chunks = yield [scene.whole(), *asks]
    answered = [chunk for chunk in chunks or [whole] if chunk.has_answer]
    best = sorted(answered, key=lambda chunk: -chunk.confidence)[: scene.options.max_spans]
    spans = merge([span for chunk in best if chunk.span_confidence >= MIN_SPAN_CONFIDENCE for span in chunk.spans])
    chosen, evidence = whole, whole.spans
    if spans:
        (zoom,) = yield [scene.zoom(spans, why=f"the spans of the {len(best)} surest parts together")]
        if zoom.confidence > whole.confidence:
            chosen, evidence = zoom, tuple(spans)
    if chosen.confidence < SURE and best:
        chosen, evidence = best[0], best[0].spans
    return scene.verdict(chosen, evidence)


def split(duration: float, length: float) -> list[Span]:
    """Parts of `length` seconds that cover [0, duration]; the last is what is left."""
    # A duration computed as frames / rate must not leave a part of nothing.
    count = max(1, math.ceil(duration / length - 1e-9))
    return [(index * length, min((index + 1) * length, duration)) for index in range(count)]
