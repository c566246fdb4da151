"""Two real clips, their dataset rows, and the tiny model's processor, for tests of the trainer."""

from pathlib import Path
from typing import Any

from zoomzero.inputs import PassSettings, VideoInputs, VisionGeometry, ZoomSettings
from zoomzero.prompts import Prompts
from zoomzero.synthetic import make_clips
from zoomzero.synthetic.tiny_model import tiny_tokenizer


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


def tiny_inputs() -> VideoInputs:
    """The demo's budgets: 64 frames of 16x16 coarse, 4 of 64x64 zoomed, 32 tokens each."""
    settings = ZoomSettings(
        coarse=PassSettings(budget_tokens=32, max_frames=64, min_frame_tokens=1, max_frame_tokens=1),
        zoom=PassSettings(budget_tokens=32, max_frames=4, min_frame_tokens=1, max_frame_tokens=16),
        prompts=Prompts(
            coarse="$question\n$options\nAnswer with evidence.",
            zoom="$question\n$options\nAnswer with the letter.",
            thinking=False,
        ),
    )
    return VideoInputs(tiny_tokenizer(), settings, VisionGeometry(8, 2, 2))
