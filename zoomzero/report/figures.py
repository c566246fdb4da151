"""Small inline figures for the report: timelines and curves as SVG, frames as PNG data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import torch
from markupsafe import Markup, escape
from PIL import Image

from zoomzero.intervals import Span


def timeline(duration: float, rows: Sequence[tuple[str, str, Sequence[Span]]]) -> Markup:
    """Bars over time as SVG. rows: (label, css class, spans in seconds); the axis runs from 0 to duration."""
    left, width, row_height = 110, 640, 22
    height = row_height * len(rows) + 22
    scale = width / duration
    parts = [f'<svg class="timeline" viewBox="0 0 {left + width + 20} {height}" role="img">']
    for index, (label, kind, spans) in enumerate(rows):
        top = index * row_height
        parts.append(f'<text x="{left - 8}" y="{top + 15}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="track" x="{left}" y="{top + 4}" width="{width}" height="14"/>')
        for start, end in spans:
            # A point in time still has to be visible.
            bar = max((end - start) * scale, 2)
            x, title = left + start * scale, f"<title>{start:.2f} s to {end:.2f} s</title>"
            parts.append(
                f'<rect class="{escape(kind)}" x="{x:.1f}" y="{top + 4}" width="{bar:.1f}" height="14">{title}</rect>'
            )
    for tick in _ticks(duration):
        parts.append(
            f'<text class="tick" x="{left + tick * scale:.1f}" y="{height - 4}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def curve(title: str, values: Sequence[float], window: int = 8) -> Markup:
    """A curve over training steps as SVG: every value faint, their running mean over `window` steps strong.

    The vertical axis runs from 0 to 1, or around the values where they leave that range.
    """
    width, height, left, top = 300, 130, 34, 22
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    step = (width - left - 8) / max(len(values) - 1, 1)

    def points(series: Sequence[float]) -> str:
        inner = height - top - 20
        return " ".join(
            f"{left + i * step:.1f},{top + inner * (high - value) / (high - low):.1f}"
            for i, value in enumerate(series)
            if math.isfinite(value)
        )

    smooth = [_mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]
    return Markup(
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img">'
        f'<text class="title" x="{left}" y="14">{escape(title)}</text>'
        f'<text class="tick" x="{left - 4}" y="{top + 8}" text-anchor="end">{high:.2g}</text>'
        f'<text class="tick" x="{left - 4}" y="{height - 18}" text-anchor="end">{low:.2g}</text>'
        f'<text class="tick" x="{width - 8}" y="{height - 4}" text-anchor="end">step {len(values)}</text>'
        f'<polyline class="raw" points="{points(values)}"/><polyline class="mean" points="{points(smooth)}"/></svg>'
    )


def strip(frames: torch.Tensor, columns: int) -> str:
    """Frames uint8 [n, h, w, 3] side by side in rows of `columns`, as a PNG data URL."""
    count, height, width, _ = frames.shape
    rows = math.ceil(count / columns)
    gap = 1
    sheet = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=torch.uint8)
    for index, frame in enumerate(frames.cpu()):
        y, x = divmod(index, columns)
        sheet[y * (height + gap) :, x * (width + gap) :][:height, :width] = frame
    png = io.BytesIO()
    Image.fromarray(sheet.numpy()).save(png, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _ticks(duration: float) -> list[float]:
    rough = duration / 8
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * i for i in range(int(duration / step) + 1)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
