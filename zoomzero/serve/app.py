"""The page of `zoomzero serve`: Gradio's upload, queue and sessions around the answering engine.

Nothing is asked of the network: analytics are off and the theme uses the fonts of the system. Gradio keeps each upload
in a folder of its own under a name by content, serves no other files, and deletes them after a while.
"""

from __future__ import annotations

import dataclasses
import html
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

# Read when gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio

from zoomzero.answering.answer import AnswerOptions, Pass, Query
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.serve.passes import answer_html, passes_html
from zoomzero.text import escaped
from zoomzero.video import VideoError, open_video

if TYPE_CHECKING:
    from zoomzero.answering.answer import Answer
    from zoomzero.answering.engine import ZoomZero

SYSTEM_FONTS = ("system-ui", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "monospace")
MAX_QUESTION_CHARACTERS = 2000
WAITING = "<p>The answer will stand here, and below it what each pass looked at, saw and said.</p>"


@dataclasses.dataclass(frozen=True)
class ServeLimits:
    """What a visitor may take."""

    max_upload: str = "500mb"
    """Largest file."""
    time_limit: float = 30.0
    """Seconds after which a decoder without a sign of life is stopped."""
    max_waiting: int = 16
    """Questions that wait for their turn; one is answered at a time."""
    keep_seconds: int = 3600
    """Age at which uploads are deleted."""


def theme() -> gradio.themes.Base:
    """Gradio's soft theme with the fonts of the system, its own would be fetched, and colours that can be read."""
    soft = gradio.themes.Soft(primary_hue="teal", font=SYSTEM_FONTS, font_mono=SYSTEM_MONO)
    titles = ("block_label", "block_title")
    return soft.set(
        body_text_color_subdued="*neutral_600",
        **{f"{title}_text_color": "*primary_800" for title in titles},
        **{f"{title}_text_color_dark": "*primary_100" for title in titles},
        **{f"{title}_background_fill_dark": "*primary_800" for title in titles},
        **{f"button_primary_background_fill{part}": "*primary_700" for part in ("", "_dark")},
        **{f"button_primary_background_fill_hover{part}": "*primary_800" for part in ("", "_dark")},
    )


def build_page(engine: ZoomZero, limits: ServeLimits, examples: Sequence[tuple[str, str, str]] = ()) -> gradio.Blocks:
    """The page.

    Args:
        engine: what answers, one question at a time.
        limits: what a visitor may take.
        examples: (video path, question, options by line) that are ready to click.
    """

    def ask(video: str | None, question: str, options: str, strategy: str) -> Iterator[tuple[str, str]]:
        yield from _ask(engine, limits, (video, question, options, strategy))

    with gradio.Blocks(
        title="zoomzero", analytics_enabled=False, delete_cache=(limits.keep_seconds, limits.keep_seconds)
    ) as page:
        gradio.Markdown("# Ask a video\nIt is looked at as a whole, then again where the evidence is.")
        with gradio.Row():
            with gradio.Column(scale=2):
                video = gradio.Video(label="Video", sources=["upload"], height=260)
                question = gradio.Textbox(label="Question", max_length=MAX_QUESTION_CHARACTERS)
                options = gradio.Textbox(label="Options, one a line (none: an open question)", lines=4)
                strategy = gradio.Dropdown(list(STRATEGIES), value="coarse_to_fine", label="Strategy")
                button = gradio.Button("Ask", variant="primary")
            with gradio.Column(scale=3):
                answer = gradio.HTML(WAITING, label="Answer", elem_id="answer")
                passes = gradio.HTML(label="Passes", elem_id="passes")
        if examples:
            gradio.Examples([list(row) for row in examples], [video, question, options], cache_examples=False)
        # Gradio takes False for a function without a public name; its annotation says texts alone.
        unnamed: Any = False
        button.click(ask, [video, question, options, strategy], [answer, passes], api_name=unnamed)
    page.queue(default_concurrency_limit=1, max_size=limits.max_waiting, api_open=False)
    return page


def _ask(engine: ZoomZero, limits: ServeLimits, asked: tuple[str | None, str, str, str]) -> Iterator[tuple[str, str]]:
    """(answer, passes) as HTML, as the passes come."""
    path, question, lines, strategy = asked
    texts = tuple(line.strip() for line in (lines or "").splitlines() if line.strip())
    if not path or not (question or "").strip():
        raise gradio.Error("Choose a video and write a question.", print_exception=False)
    news: queue.Queue[float | Pass | Answer | Exception] = queue.Queue()

    def work() -> None:
        try:
            with open_video(path, time_limit=limits.time_limit) as video:
                news.put(video.duration)
                query = Query(video, question, texts or None)
                chosen = AnswerOptions(strategy, keep_frames=True)
                news.put(engine.answer_batch([query], chosen, lambda _, look: news.put(look))[0])
        except Exception as error:
            news.put(error)

    # The engine calls back; the page wants the passes one by one.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    looks: list[Pass] = []
    duration = 0.0
    yield "", "<p>Reading the video…</p>"
    while True:
        found: Any = news.get()
        if isinstance(found, float):
            duration = found
            yield "", passes_html(looks, duration)
        elif isinstance(found, Pass):
            looks.append(found)
            yield "", passes_html(looks, duration)
        elif isinstance(found, (VideoError, ValueError)):
            raise gradio.Error(_message(str(found), path), print_exception=False)
        elif isinstance(found, Exception):
            raise found
        else:
            yield answer_html(found), passes_html(found.passes, duration)
            return


def _message(error: str, path: str) -> str:
    """An error without the folder of the uploads, and as text: Gradio shows messages as HTML."""
    return html.escape(escaped(error.replace(path, os.path.basename(path))))
