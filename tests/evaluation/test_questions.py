"""questions.jsonl gives back what was asked, whatever the texts hold."""

import dataclasses
from pathlib import Path

import pytest

from zoomzero.annotations import Sample
from zoomzero.evaluation.questions import QUESTIONS_FILE, read_questions, write_questions
from zoomzero.evaluation.records import question_keys

SAMPLE = Sample(
    "a/b.mp4", "Who \ud800 <b>?\u2028", ("x\n", "y"), "B", ((1.0, 2.5), (4.0, 5.0)), None, "q1", "a | b", "short"
)


def test_questions_read_back_are_those_written(tmp_path: Path) -> None:
    samples = [SAMPLE, dataclasses.replace(SAMPLE, question="other", duration=9.5, subtitles="s.srt"), SAMPLE]
    write_questions(tmp_path, samples)
    assert list(read_questions(tmp_path).items()) == list(zip(question_keys(samples), samples, strict=True))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"key": "k"}', '{"key": "k", "spans": [1], "options": []}'])
def test_a_missing_or_foreign_file_is_told_with_its_remedy(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / QUESTIONS_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"questions.jsonl: must hold the run's questions, got .* --run once more"):
        read_questions(tmp_path)
