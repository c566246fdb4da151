"""Synthetic clips with questions, answers and evidence spans: the world in which the demo and the tests live."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypedDict, Unpack

from zoomzero.prompts import OPTION_LETTERS
from zoomzero.synthetic import render
from zoomzero.synthetic.render import CANVAS, COLOURS, GLYPHS, SIGN_SIDE, ClipSpec, Sign

LETTERS = tuple(GLYPHS)
ANNOTATION_FILE = "annotations.json"


@dataclasses.dataclass(frozen=True)
class Question:
    """A multiple-choice question about a clip.

    options are the bare texts, answer is the option letter ("A" is the first option), spans are the true evidence in
    seconds from the first frame.
    """

    question: str
    options: tuple[str, ...]
    answer: str
    spans: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip on disk: path of the .mp4, duration in seconds, its questions, and the spec it was drawn from."""

    path: Path
    duration: float
    questions: tuple[Question, ...]
    spec: ClipSpec


class ClipKind(TypedDict, total=False):
    """What clips are like."""

    size: int
    """Side of the square frames in pixels, a multiple of 64 (64, the default, or 448 are usual)."""
    fps: int
    """Frames per second, at least 4, which is the default."""
    duration: float
    """Length in seconds, at least 16 per sign appearance; 32 unless told."""
    appearances: tuple[int, int]
    """Fewest and most intervals in which each sign is shown; (1, 1), the default, is the easy set, (2, 3) with
    duration=300 the hard one."""


def make_clips(
    directory: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **kind: Unpack[ClipKind],
) -> list[Clip]:
    """Make `count` real H.264 .mp4 files with two signs each, and one question a sign.

    Clip i depends only on (seed, i) and the options, never on count or workers. Files are named by a hash of their
    content's description: those already in `directory` are not made again. The annotations of all clips are written to
    `directory`/annotations.json in the published NExT-GQA style (see `nextgqa_rows`).

    Args:
        directory: folder for the files; made if missing.
        count: number of clips.
        seed: seed of the set.
        workers: processes; all cores unless told.
        on_progress: called as on_progress(done, total) after each new file.
        kind: what the clips are like: size, fps, duration and appearances, see `ClipKind`.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an unknown option.
        RuntimeError: a worker failed; its last words are in the message.
    """
    chosen: dict[str, Any] = {**ClipKind(size=64, fps=4, duration=32.0, appearances=(1, 1)), **kind}
    if len(chosen) > len(ClipKind.__annotations__):
        unknown = ", ".join(name for name in kind if name not in ClipKind.__annotations__)
        raise TypeError(f"make_clips: options must be among {', '.join(ClipKind.__annotations__)}, got {unknown}")
    size, fps, duration, appearances = (chosen[name] for name in ("size", "fps", "duration", "appearances"))
    _check_options(count, size, fps, duration, appearances)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    specs = [_random_spec(seed, index, size, fps, duration, appearances) for index in range(count)]
    missing = [spec for spec in dict.fromkeys(specs) if not (folder / spec.file_name()).exists()]
    if missing:
        _render_all(folder, missing, min(workers or os.cpu_count() or 1, len(missing)), on_progress)
    clips = [Clip(folder / spec.file_name(), spec.duration, _questions(spec), spec) for spec in specs]
    annotations = json.dumps(nextgqa_rows(clips), indent=1)
    (folder / ANNOTATION_FILE).write_text(annotations, encoding="utf-8")
    return clips


def nextgqa_rows(clips: Sequence[Clip]) -> list[dict]:
    """The questions as NExT-GQA-style rows: {video, question, options ["(A) ..."], answer "(A)", glue, duration}."""
    return [
        {
            "video": clip.path.name,
            "question": question.question,
            "options": [f"({letter}) {text}" for letter, text in zip(OPTION_LETTERS, question.options, strict=False)],
            "answer": f"({question.answer})",
            "glue": [list(span) for span in question.spans],
            "duration": clip.duration,
        }
        for clip in clips
        for question in clip.questions
    ]


def _check_options(count: int, size: int, fps: int, duration: float, appearances: tuple[int, int]) -> None:
    if count < 1:
        raise ValueError(f"make_clips: count must be at least 1, got {count}; ask for one clip or more")
    if size < CANVAS or size % CANVAS:
        raise ValueError(f"make_clips: size must be a positive multiple of {CANVAS}, got {size}; use 64 or 448")
    if fps < 4:
        raise ValueError(f"make_clips: fps must be at least 4, got {fps}; signs last 3 seconds or more and need frames")
    fewest, most = appearances
    if not 1 <= fewest <= most:
        raise ValueError(f"make_clips: appearances must be (fewest, most) with 1 <= fewest <= most, got {appearances}")
    if duration < 32 * most:
        raise ValueError(
            f"make_clips: {most} appearances of two signs need a duration of at least {32 * most} s, got {duration}; "
            "make the clip longer or the signs rarer"
        )


def _random_spec(seed: int, index: int, size: int, fps: int, duration: float, appearances: tuple[int, int]) -> ClipSpec:
    """Two signs of different colours, shown in disjoint intervals of 3-8 s that lie on whole frames."""
    rng = random.Random(f"{seed}/{index}")
    counts = [rng.randint(*appearances) for _ in range(2)]
    owners = [0] * counts[0] + [1] * counts[1]
    rng.shuffle(owners)
    intervals = _disjoint_intervals(rng, len(owners), duration, fps)
    signs = []
    for sign_index, colour in enumerate(rng.sample(list(COLOURS), 2)):
        signs.append(
            Sign(
                colour=colour,
                letter=rng.choice(LETTERS),
                x=rng.randint(1, CANVAS - SIGN_SIDE - 1),
                y=rng.randint(1, CANVAS - SIGN_SIDE - 1),
                dark_letter=rng.random() < 0.5,
                intervals=tuple(i for i, owner in zip(intervals, owners, strict=True) if owner == sign_index),
            )
        )
    return ClipSpec(rng.getrandbits(32), size, fps, float(duration), tuple(signs))


def _disjoint_intervals(rng: random.Random, count: int, duration: float, fps: int) -> list[tuple[float, float]]:
    """`count` intervals of 3-8 s inside [0, duration], in order, at least one second apart, on whole frames."""
    lengths = [rng.randint(3 * fps, 8 * fps) for _ in range(count)]
    free = round(duration * fps) - sum(lengths) - fps * (count - 1)
    cuts = sorted(rng.randint(0, free) for _ in range(count))
    starts = [cut + sum(lengths[:i]) + fps * i for i, cut in enumerate(cuts)]
    return [(start / fps, (start + length) / fps) for start, length in zip(starts, lengths, strict=True)]


def _questions(spec: ClipSpec) -> tuple[Question, ...]:
    """One question a sign. The options are the letters in order, so an option's letter is the sign's letter."""
    return tuple(
        Question(
            question=f"Which letter is on the {sign.colour} sign?",
            options=LETTERS,
            answer=OPTION_LETTERS[LETTERS.index(sign.letter)],
            spans=sign.intervals,
        )
        for sign in spec.signs
    )


def _render_all(
    folder: Path, specs: Sequence[ClipSpec], workers: int, on_progress: Callable[[int, int], None] | None
) -> None:
    """Share the clips among worker processes: fresh interpreters, so that callers need no `__main__` guard."""
    jobs = [specs[i::workers] for i in range(workers)]
    with tempfile.TemporaryDirectory() as scratch:
        running: list[tuple[subprocess.Popen[str], IO[str]]] = []
        for number, job in enumerate(jobs):
            request = Path(scratch) / f"{number}.json"
            payload = {"directory": str(folder.resolve()), "specs": [dataclasses.asdict(spec) for spec in job]}
            request.write_text(json.dumps(payload))
            errors: IO[str] = (Path(scratch) / f"{number}.err").open("w+")
            with request.open() as stdin:
                command = [sys.executable, "-P", render.__file__]
                running.append(
                    (subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, text=True), errors)
                )
        done = 0
        for process, _ in running:
            for _ in process.stdout or ():
                done += 1
                if on_progress is not None:
                    on_progress(done, len(specs))
        for process, errors in running:
            if process.wait() != 0:
                errors.seek(0)
                raise RuntimeError(f"make_clips: a rendering worker failed: {errors.read().strip()[-800:]}")
            errors.close()
