"""Passes and answers as HTML. All texts are escaped: questions, responses and file names come from outside."""

from __future__ import annotations

import html
from collections.abc import Sequence

from zoomzero.answering.answer import Answer, Pass
from zoomzero.intervals import Span
from zoomzero.report.frames import encoded_sheet, shown_times
from zoomzero.text import escaped

FRAME_PIXELS, NUM_LARGE = 128, 8
GREEN, BLUE, GREY = "#17774a", "#2160c4", "#8a94a0"


def answer_html(answer: Answer) -> str:
    """The answer with its confidence, evidence and cost."""
    cost = answer.total_cost
    letter = "" if answer.letter is None else f"({answer.letter}) "
    text = "no answer" if answer.text is None else f"{letter}{answer.text}"
    return (
        f'<div style="font-size:1.5rem;font-weight:600">{_text(text)}</div>'
        f"<p>{100 * answer.confidence:.0f} % sure · evidence {_text(_spans(answer.spans))} · "
        f"{cost.visual_tokens} visual tokens · {cost.flops / 1e9:.3g} GFLOP · {cost.seconds:.2f} s</p>"
    )


def passes_html(passes: Sequence[Pass], duration: float) -> str:
    """The video's length, then of the passes so far what each saw and said, on a timeline of `duration` seconds."""
    seen = "".join(_pass(look, number, duration) for number, look in enumerate(passes, start=1))
    return f"<p>The video is {duration:.1f} s long.</p>{seen}"


def _pass(look: Pass, number: int, end: float) -> str:
    height, width = look.plan.size
    said = look.letter or look.words or "no answer"
    return (
        f'<section style="margin:0 0 1.5rem"><b>{number} · {_text(look.name)}: {_text(said)}</b> '
        f"{100 * look.confidence:.0f} % sure<br><small>{len(look.plan.timestamps)} frames of {width}×{height} · "
        f"{look.cost.visual_tokens} visual tokens · {look.cost.seconds:.2f} s · {_text(look.why)}</small>"
        f"{_timeline(look, end)}{_frames(look)}"
        f'<pre style="white-space:pre-wrap">{_text(look.text)}</pre></section>'
    )


def _timeline(look: Pass, end: float) -> str:
    bars = [(span, BLUE, 14) for span in look.spans] + [(span, GREEN, 6) for span in look.looked_at]
    drawn = "".join(
        f'<rect x="{1000 * start / end:.1f}" y="0" width="{max(2, 1000 * (stop - start) / end):.1f}" height="{high}" '
        f'fill="{tint}"/>'
        for (start, stop), tint, high in bars
    )
    ticks = "".join(f"M{1000 * time / end:.1f} 14V20" for time in look.plan.timestamps)
    named = f"named {_spans(look.spans)}; looked at {_spans(look.looked_at) if look.looked_at else 'the whole video'}"
    return (
        f'<svg role="img" aria-label="{_text(named)}" viewBox="0 0 1000 20" preserveAspectRatio="none" '
        f'style="width:100%;height:20px;display:block;margin:.5rem 0">{drawn}<path d="{ticks}" stroke="{GREY}"/></svg>'
    )


def _frames(look: Pass) -> str:
    if look.frames is None:
        return ""
    times = shown_times(look.plan.timestamps, look.plan.size)
    places = [look.plan.timestamps.index(time) for time in times]
    # The few frames of a zoom are looked at closely.
    height = FRAME_PIXELS if len(times) <= NUM_LARGE else FRAME_PIXELS // 2
    frames = "".join(
        f'<figure style="margin:0"><img src="{encoded_sheet(look.frames[place : place + 1], [time])["url"]}" '
        f'alt="frame at {time:.1f} s" style="height:{height}px;image-rendering:pixelated;display:block">'
        f'<figcaption style="font-size:.75rem">{time:.1f} s</figcaption></figure>'
        for place, time in zip(places, times, strict=True)
    )
    return f'<div class="frames" style="display:flex;flex-wrap:wrap;gap:.4rem">{frames}</div>'


def _spans(spans: Sequence[Span]) -> str:
    return ", ".join(f"{start:.1f}–{stop:.1f} s" for start, stop in spans) or "none"


def _text(text: str) -> str:
    return html.escape(escaped(text))
