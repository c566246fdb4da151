"""Answering with a real model on real files: two passes, their bookkeeping, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from zoomzero import ZoomZero, responses
from zoomzero.answering import engine as engine_module
from zoomzero.answering.answer import AnswerOptions, Query
from zoomzero.answering.backends import local
from zoomzero.rollouts import Rollouts
from zoomzero.synthetic import make_clips
from zoomzero.synthetic.clips import Clip
from zoomzero.video import Video, VideoError, open_video

OPTIONS = ("A", "B", "C", "D")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return make_clips(tmp_path_factory.mktemp("clips"), 12, seed=21)


@pytest.fixture(scope="module")
def engine() -> ZoomZero:
    return ZoomZero.from_pretrained(device="cpu")


def test_single_pass_answers_from_the_response(engine: ZoomZero, clips: list[Clip]) -> None:
    question = clips[0].questions[0]
    answer = engine.answer(clips[0].path, question.question, OPTIONS, strategy="single", max_new_tokens=40)
    assert [look.name for look in answer.passes] == ["coarse"]
    look = answer.passes[0]
    assert f"<answer>{answer.letter}</answer>" in look.text
    assert look.plan.num_tokens == 32
    assert 0 < answer.confidence == look.confidence <= 1
    assert answer.timings["generate"] > 0


def test_coarse_to_fine_zooms_into_the_named_spans(engine: ZoomZero, clips: list[Clip]) -> None:
    question = clips[0].questions[0]
    with open_video(clips[0].path) as video:
        answer = engine.answer(video, question.question, OPTIONS, max_new_tokens=40, keep_frames=True)
        # An open video stays open.
        assert len(video.frames_at([0.0])[0]) == 1
    coarse, zoom = answer.passes
    assert answer.spans
    (start, end), times = answer.spans[0], zoom.plan.timestamps
    assert all(start <= time <= end for time in times)
    assert (coarse.plan.size, zoom.plan.size) == ((16, 16), (64, 64))
    assert coarse.frames is not None
    assert zoom.frames is not None
    assert (coarse.frames.shape, zoom.frames.shape) == ((64, 16, 16, 3), (4, 64, 64, 3))
    assert zoom.text == zoom.letter == answer.letter


def test_carried_model_reads_better_zoomed_than_coarse(engine: ZoomZero, clips: list[Clip]) -> None:
    """On the true spans it reads nearly every letter; at coarse resolution it cannot."""
    questions = [(clip, question) for clip in clips for question in clip.questions]
    queries = [Query(clip.path, question.question, OPTIONS) for clip, question in questions]
    answers = engine.answer_batch(queries, AnswerOptions(max_new_tokens=40))
    coarse = sum(a.passes[0].letter == q.answer for a, (_, q) in zip(answers, questions, strict=True))
    zoomed = sum(a.letter == q.answer for a, (_, q) in zip(answers, questions, strict=True))
    assert zoomed > coarse


def test_response_without_spans_zooms_into_the_whole_video(engine: ZoomZero, clips: list[Clip]) -> None:
    answer = engine.answer(clips[0].path, clips[0].questions[0].question, OPTIONS, max_new_tokens=2)
    assert answer.spans == ()
    assert answer.passes[0].letter is None
    assert answer.passes[0].confidence == 0
    times = answer.passes[1].plan.timestamps
    assert max(times) - min(times) > 16
    assert answer.letter in OPTIONS


def test_letters_beyond_the_options_are_no_answer(engine: ZoomZero, clips: list[Clip]) -> None:
    for clip in clips[:4]:
        answer = engine.answer(clip.path, clip.questions[0].question, ["A", "B"], max_new_tokens=40)
        assert answer.letter in ("A", "B")
        assert answer.passes[0].letter in ("A", "B", None)


def test_answering_leaves_the_model_unchanged(engine: ZoomZero, clips: list[Clip]) -> None:
    before = [value.clone() for value in engine.model.parameters()]
    engine.answer_batch(
        [Query(clips[0].path, "Which letter is on the red sign?", OPTIONS)] * 2, AnswerOptions(max_new_tokens=4)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))


def test_questions_on_one_video_read_its_frame_table_once(
    engine: ZoomZero, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(path: str) -> Video:
        opened.append(path)
        return open_video(path)

    monkeypatch.setattr(engine_module, "open_video", counted)
    fresh = ZoomZero(engine.model, engine.processor)
    queries = [Query(clips[i].path, question.question, OPTIONS) for i in (0, 1) for question in clips[i].questions]
    together = fresh.answer_batch(queries, AnswerOptions(max_new_tokens=40))
    again = [fresh.answer(q.video, q.question, q.options, max_new_tokens=40) for q in queries]
    assert opened == [str(clips[0].path), str(clips[1].path)]
    assert [(a.letter, a.spans) for a in together] == [(a.letter, a.spans) for a in again]


def test_answers_are_json(engine: ZoomZero, clips: list[Clip]) -> None:
    answer = engine.answer(clips[0].path, "Which letter?", OPTIONS, max_new_tokens=4, keep_frames=True)
    written = json.loads(json.dumps(answer.as_dict()))
    assert written["letter"] == answer.letter
    assert [look["num_frames"] for look in written["passes"]] == [64, 4]


def test_bad_arguments_are_refused(engine: ZoomZero, clips: list[Clip], tmp_path: Path) -> None:
    path, question = clips[0].path, "what?"
    with pytest.raises(ValueError, match=r"strategy must be one of single, coarse_to_fine, .*, got 'guess'"):
        engine.answer(path, question, OPTIONS, strategy="guess")
    with pytest.raises(ValueError, match="budget_tokens must be at least 1, got 0"):
        engine.answer(path, question, OPTIONS, budget_tokens=0)
    with pytest.raises(ValueError, match="options must be 2 to 8 texts, got 0"):
        engine.answer(path, question, [])
    with pytest.raises(VideoError, match=r"absent\.mp4"):
        engine.answer(tmp_path / "absent.mp4", question, OPTIONS)
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(VideoError, match=r"text\.mp4"):
        engine.answer(tmp_path / "text.mp4", question, OPTIONS)


@pytest.mark.parametrize(
    ("said", "letter", "spans"),
    [
        ("<answer>b</answer>\n<glue>(3, 5.5)</glue>", "B", ((3.0, 5.5),)),
        ("<answer>**B**</answer>\n<glue>00:03-00:05</glue>", "B", ((3.0, 5.0),)),
        ("<answer>(B) the dog</answer>\n<glue>[(3, 99)]</glue>", "B", ((3.0, 32.0),)),
        ("<answer>the dog</answer>", "B", ()),
        ("The answer is B", "B", ()),
        ("<answer>A or B</answer>\n<glue>[1, 2, 3]</glue>", None, ()),
    ],
)
def test_clear_answers_in_other_words_are_read(
    engine: ZoomZero, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, said: str, letter: str | None, spans: Any
) -> None:
    """The model's tokens are put in its mouth, each with probability 0.5."""
    ids = torch.tensor(
        [
            [
                *engine.processor.tokenizer(said, add_special_tokens=False).input_ids,
                engine.processor.tokenizer.eos_token_id,
            ]
        ]
    )
    logps = torch.full(ids.shape, 0.5).log()
    rollouts = Rollouts(ids, torch.ones_like(ids, dtype=torch.bool), logps, torch.tensor([True]))
    monkeypatch.setattr(local, "generate", lambda *_: rollouts)
    answer = engine.answer(clips[0].path, "Who barks?", ("the cat", "the dog"), strategy="single")
    assert (answer.letter, answer.spans) == (letter, spans)
    assert answer.confidence == (0 if letter is None else pytest.approx(0.5))


def test_a_response_is_parsed_once(engine: ZoomZero, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer of two passes: the coarse response once; the zoom pass says a letter only."""
    parsed: list[str] = []
    real = responses._is_well_formed  # what `parse` does once, at its end
    monkeypatch.setattr(responses, "_is_well_formed", lambda text, *rest: parsed.append(text) or real(text, *rest))
    answer = engine.answer(clips[0].path, clips[0].questions[0].question, OPTIONS, max_new_tokens=40)
    assert parsed == [answer.passes[0].text]
