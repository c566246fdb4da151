"""What an answer costs: every strategy on videos of 1, 10 and 60 minutes, with the package's own tiny model.

Clips of the synthetic world (64x64, 4 frames per second, H.264), the model's own budgets. Strategies take turns; the
first round does not count, so files lie in the page cache and imports are done. A question opens its file anew. Tokens,
floating-point operations and the number of passes are exact; seconds are of a machine that may be shared. Memory is the
growth of a fresh process while it answers once.

    python benchmarks/bench_answer.py [--rounds 3] [--minutes 1 10 60] [--frames keyframes]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import peak_bytes, print_table, serve_memory, write_results

from zoomzero.answering.answer import Answer
from zoomzero.answering.engine import ZoomZero
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.bench.timing import interleave, peak_bytes_during, timing_row
from zoomzero.synthetic import Clip, make_clips
from zoomzero.video import open_video

CLIPS = Path(".cache/bench_answer")
MAX_NEW_TOKENS = 40
FRAME_CHOICES = ("exact", "keyframes")


def clip_of(minutes: int) -> Clip:
    """A clip of that length, each sign shown once per minute at most."""
    return make_clips(CLIPS, 1, seed=900, duration=60.0 * minutes, appearances=(1, 1))[0]


def engine_with(frames: str) -> ZoomZero:
    """The tiny model, whose coarse pass chooses frames in the way asked for."""
    engine = ZoomZero.from_pretrained()
    settings = engine.processor.settings
    coarse = dataclasses.replace(settings.coarse, frame_choice=frames)
    engine.processor.settings = dataclasses.replace(settings, coarse=coarse)
    return engine


def ask(engine: ZoomZero, clip: Clip, strategy: str) -> Answer:
    """One answer, with the file opened for it."""
    question = clip.questions[0]
    with open_video(clip.path) as video:
        return engine.answer(video, question.question, question.options, strategy, max_new_tokens=MAX_NEW_TOKENS)


def measured_memory(case: str) -> int:
    """Bytes by which the process grows for the case "minutes/strategy/frames"."""
    minutes, strategy, frames = case.split("/")
    engine, clip = engine_with(frames), clip_of(int(minutes))
    ask(engine, clip_of(1), strategy)
    return peak_bytes_during(lambda: ask(engine, clip, strategy))


def rows_of(
    minutes: int, frames: str, rounds: int, strategies: Sequence[str], *, without_memory: bool
) -> list[dict[str, Any]]:
    """One row per strategy."""
    engine, clip = engine_with(frames), clip_of(minutes)
    calls = {name: functools.partial(ask, engine, clip, name) for name in strategies}
    answers = {name: call() for name, call in calls.items()}
    timings = interleave(calls, rounds=rounds)
    rows = []
    for name, answer in answers.items():
        rows.append(
            {
                "minutes": minutes,
                "frames": frames,
                "strategy": name,
                **timing_row(timings[name]),
                "times_single": round(timings[name].speedup_of(timings["single"]), 2),
                "times_single_cpu": round(timings[name].cpu_speedup_of(timings["single"]), 2),
                "cpu_seconds_above_single": round((timings[name].cpu_ms - timings["single"].cpu_ms) / 1e3, 2),
                "passes": len(answer.passes),
                "visual_tokens": answer.total_cost.visual_tokens,
                "text_tokens": answer.total_cost.text_tokens,
                "gigaflops": round(answer.total_cost.flops / 1e9, 3),
                "extra_peak_megabytes": None
                if without_memory
                else round(peak_bytes(__file__, f"{minutes}/{name}/{frames}") / 1e6, 1),
            }
        )
    return rows


def main() -> None:
    if serve_memory(measured_memory):
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10, 60])
    parser.add_argument("--frames", nargs="+", choices=FRAME_CHOICES, default=list(FRAME_CHOICES))
    parser.add_argument(
        "--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), help="single among them"
    )
    parser.add_argument("--without-memory", action="store_true", help="leave out what needs a fresh process")
    options = parser.parse_args()
    rows = []
    for minutes in options.minutes:
        for frames in options.frames:
            # Printed as they come: an hour takes minutes.
            part = rows_of(minutes, frames, options.rounds, options.strategies, without_memory=options.without_memory)
            print_table(part)
            rows += part
    print(f"written to {write_results('answer', rows)}")


if __name__ == "__main__":
    main()
