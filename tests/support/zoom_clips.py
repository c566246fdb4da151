"""Real clips as dataset rows, for tests of the trainer."""

from pathlib import Path
from typing import Any

from zoomzero.synthetic import make_clips


def clip_rows(folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """Dataset rows of `count` clips, two questions each."""
    return [
        {
            "video": str(clip.path),
            "question": question.question,
            "options": list(question.options),
            "answer": question.answer,
            "spans": [list(span) for span in question.spans],
        }
        for clip in make_clips(folder, count, seed=5)
        for question in clip.questions
    ]
