"""`zoomzero answer`: questions about one video, each pass shown as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomzero.cli.model_options import add_model_options, answer_options, load, model_options, prompts_of
from zoomzero.cli.video_limits import add_time_limit
from zoomzero.text import escaped

if TYPE_CHECKING:
    from zoomzero.answering.answer import Answer, AnswerOptions, Pass, Query
    from zoomzero.answering.engine import Engine
    from zoomzero.intervals import Span

# A file of questions about one video is a page or two.
MAX_QUESTIONS_BYTES = 1 << 20
MAX_QUESTIONS = 1000


def add(commands: Any) -> None:
    """Add the command and its options."""
    answer = commands.add_parser("answer", help="answer questions about a video, and show the evidence")
    answer.add_argument("video", type=Path, help="the video file")
    answer.add_argument("question", nargs="?", help="the question; or --questions")
    answer.add_argument("--options", nargs="+", metavar="TEXT", help="2 to 8 possible answers; none: an open question")
    answer.add_argument(
        "--questions", type=Path, metavar="FILE",
        help='several questions that share the first pass\'s frames: JSON list or lines of {"question", "options"}',
    )  # fmt: skip
    add_model_options(answer)
    answer.add_argument("--subtitles", type=Path, metavar="FILE", help="an .srt file of the video")
    add_time_limit(answer, "say so")
    answer.add_argument("--json", action="store_true", help="print whole answers as JSON, and nothing else")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    # Everything that can be told without the model is told before it is loaded, which takes seconds.
    from zoomzero.answering.answer import Query
    from zoomzero.answering.subtitles import load_subtitles
    from zoomzero.prompts import Inquiry
    from zoomzero.video import VideoError, open_video

    chosen, model, prompts = answer_options(options), model_options(options), prompts_of(options)
    subtitles = None if options.subtitles is None else load_subtitles(options.subtitles)
    questions = _questions(options)
    with open_video(options.video, time_limit=options.time_limit or None) as video:
        for number, (question, texts) in enumerate(questions, start=1):
            try:
                Inquiry(question, texts, video.duration)
            except ValueError as error:
                if options.questions is None:
                    raise
                raise ValueError(f"{options.questions}: question {number}: {error}") from error
        if model.model is None:
            print(
                "zoomzero answer: no --model, so the built-in one answers; it knows the synthetic clips of `zoomzero "
                "demo` only",
                file=sys.stderr,
            )
        engine = load(options, prompts, num_questions=len(questions))
        queries = [Query(video, question, texts, subtitles) for question, texts in questions]
        answers = _answers(engine, queries, chosen, quiet=options.json)
    for answer in answers:
        if isinstance(answer, VideoError):
            raise answer
    if options.json:
        written = [answer.as_dict() for answer in answers]
        print(json.dumps(written if options.questions else written[0], indent=1))
    return 0


def _answers(engine: Engine, queries: list[Query], options: AnswerOptions, *, quiet: bool) -> list[Any]:
    """Answers, or why a pass's frames cannot be read; passes are printed as they come unless quiet."""
    several = len(queries) > 1
    with engine.read(queries[0].video, options.budget_tokens, num_queries=len(queries)) as reading:
        if not quiet:
            print(
                f"read: {len(reading.coarse.plan.timestamps)} frames of the whole video, {reading.seconds:.2f} s",
                flush=True,
            )

        def on_pass(place: int, look: Pass) -> None:
            if not quiet:
                _print_pass(look, f"question {place + 1}, " if several else "")

        answers: list[Any] = engine.answer_readings([(query, reading) for query in queries], options, on_pass)
    for query, answer in zip(queries, answers, strict=True):
        if not quiet and hasattr(answer, "passes"):
            if several:
                print(f"\n{escaped(query.question)}")
            _print_answer(answer)
    return answers


def _print_pass(look: Pass, prefix: str) -> None:
    height, width = look.plan.size
    frames = f"{len(look.plan.timestamps)} frames of {width}x{height}, {look.cost.visual_tokens} visual tokens"
    at = f"; looked at {', '.join(map(_clock_span, look.looked_at))}" if look.looked_at else ""
    print(f"{prefix}{look.name:>6} pass: {frames}, {look.cost.seconds:.2f} s{at} ({look.why})", flush=True)
    print(f"             {escaped(' '.join(look.text.split()))}", flush=True)


def _print_answer(answer: Answer) -> None:
    print(f"evidence: {', '.join(_clock_span(span) for span in answer.spans) or 'none named'}")
    if answer.text is None:
        print("answer: none (the response holds none)")
    else:
        letter = "" if answer.letter is None else f"({answer.letter}) "
        print(f"answer: {letter}{escaped(answer.text)}, confidence {answer.confidence:.2f}")
    cost = answer.total_cost
    print(
        f"cost: {len(answer.passes)} passes, {cost.visual_tokens} visual and {cost.text_tokens} text tokens, "
        f"{cost.flops / 1e9:.3g} GFLOP, {cost.seconds:.2f} s"
    )


def _clock_span(span: Span) -> str:
    return f"{clock(span[0])}-{clock(span[1])}"


def clock(seconds: float) -> str:
    """Seconds as mm:ss, with tenths where there are some and hours where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes:02d}:{text}"


def _questions(options: argparse.Namespace) -> list[tuple[str, tuple[str, ...] | None]]:
    """The questions that were asked, with their options (None for an open one)."""
    if (options.question is None) == (options.questions is None):
        raise ValueError("needs a question or --questions FILE, and not both; write the question behind the video")
    if options.questions is None:
        return [(options.question, None if options.options is None else tuple(options.options))]
    if options.options is not None:
        raise ValueError("--options belong to a question on the command line; write them into the file of --questions")
    file = options.questions
    with file.open("rb") as opened:
        content = opened.read(MAX_QUESTIONS_BYTES + 1)
    if len(content) > MAX_QUESTIONS_BYTES:
        raise ValueError(f"{file}: questions must have at most {MAX_QUESTIONS_BYTES} bytes, got more; split the file")
    rows = _rows(file, content)
    if not 1 <= len(rows) <= MAX_QUESTIONS:
        raise ValueError(f"{file}: must hold 1 to {MAX_QUESTIONS} questions, got {len(rows)}; split or fill the file")
    return [_question(file, number, row) for number, row in enumerate(rows, start=1)]


def _rows(file: Path, content: bytes) -> list[Any]:
    """What a JSON list, or each line of JSON, holds."""
    place = "the file"
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            rows: list[Any] = json.loads(text)
            return rows
        rows = []
        # Other separators that splitlines knows may stand inside a JSON text.
        for number, line in enumerate(text.split("\n"), start=1):
            place = f"line {number}"
            if line.strip():
                rows.append(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: must be a JSON list, or lines of JSON objects, in UTF-8; {place} is not: {error}; correct it"
        ) from error
    return rows


def _question(file: Path, number: int, row: object) -> tuple[str, tuple[str, ...] | None]:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise ValueError(f'{file}: question {number} must be an object with a text "question", got {row!r:.80}')
    texts = row.get("options")
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f'{file}: "options" of question {number} must be a list of texts, got {texts!r:.80}')
    return row["question"], None if texts is None else tuple(texts)
