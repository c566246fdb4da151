"""Strategies: what each looks at and why, fed with passes of chosen confidence, and run by the real engine."""

import dataclasses
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from zoomzero import ZoomZero
from zoomzero.answering.answer import AnswerOptions, Cost, Pass, Query, Verdict
from zoomzero.answering.scene import Ask, Scene
from zoomzero.answering.strategies import STRATEGIES, check_strategy
from zoomzero.answering.strategies.divide_and_conquer import split
from zoomzero.answering.subtitles import Cue, Subtitles
from zoomzero.inputs import VideoInputs
from zoomzero.intervals import Span
from zoomzero.prompts import Inquiry
from zoomzero.synthetic import make_clips, tiny_processor
from zoomzero.synthetic.clips import Clip
from zoomzero.video import Video, open_video

OPTIONS = ("A", "B", "C", "D")
DURATION = 100.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return make_clips(tmp_path_factory.mktemp("clips"), 3, seed=23, duration=DURATION, appearances=(1, 2))


@pytest.fixture(scope="module")
def video(clips: list[Clip]) -> Iterator[Video]:
    with open_video(clips[0].path) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine() -> ZoomZero:
    return ZoomZero.from_pretrained(device="cpu")


def _scene(video: Video, processor: VideoInputs | None = None, **options: object) -> Scene:
    said = Subtitles((Cue(1.0, 3.0, "first"), Cue(40.0, 42.0, "second")))
    inquiry = Inquiry("Which letter?", OPTIONS, video.duration, said.text(0.0, video.duration))
    return Scene(video, inquiry, said, AnswerOptions(**options), processor or tiny_processor())  # type: ignore[arg-type]


def _said(
    ask: Ask, letter: str, confidence: float, spans: Sequence[Span] = (), sure: float = 11.0, cited: Sequence[Span] = ()
) -> Pass:
    """A pass over the look, as the engine would make it, with a chosen answer."""
    return Pass(
        ask.name, ask.look.plan, letter, letter, confidence, Cost(0, 0, 0.0, 0.0), spans=tuple(spans),
        cited=tuple(cited), span_confidence=sure if spans else 0.0, looked_at=ask.looked_at, why=ask.why,
    )  # fmt: skip


def _drive(scene: Scene, said: Sequence[Sequence[tuple[Any, ...]]]) -> tuple[Verdict, list[list[Ask]]]:
    """Run the scene's strategy with answers chosen beforehand; the verdict, and the looks of each step."""
    strategy = STRATEGIES[scene.options.strategy](scene)
    steps = [list(next(strategy))]
    for answers in said:
        passes = [_said(ask, *answer) for ask, answer in zip(steps[-1], answers, strict=True)]
        asks, verdict = _send(strategy, passes)
        if verdict is not None:
            return verdict, steps
        steps.append(asks)
    raise AssertionError(f"the strategy did not end after {len(said)} steps")


def _send(
    strategy: Generator[Sequence[Ask], Sequence[Pass], Verdict], passes: Sequence[Pass]
) -> tuple[list[Ask], Verdict | None]:
    try:
        return list(strategy.send(passes)), None
    except StopIteration as stop:
        return [], stop.value


# -- divide and conquer ----------------------------------------------------------------------------------------------


def test_parts_cover_the_video() -> None:
    assert split(100.0, 32.0) == [(0.0, 32.0), (32.0, 64.0), (64.0, 96.0), (96.0, 100.0)]
    assert split(96.0, 32.0) == [(0.0, 32.0), (32.0, 64.0), (64.0, 96.0)]
    assert split(5.0, 32.0) == [(0.0, 5.0)]
    assert len(split(288 * 3 / 9.0, 32.0)) == 3


def test_the_surest_parts_are_zoomed_into_together(video: Video) -> None:
    scene = _scene(video, strategy="divide_and_conquer", max_spans=2)
    parts = [("A", 0.9, [(1.0, 2.0)]), ("B", 0.2, [(40.0, 41.0)]), ("C", 0.8, [(70.0, 72.0)]), ("D", 0.7, [])]
    verdict, steps = _drive(scene, [[("A", 0.6), *parts], [("B", 0.95)]])
    assert [ask.look.plan.timestamps[0] for ask in steps[0][1:]] == pytest.approx([0, 32, 64, 96], abs=1)
    assert [ask.why for ask in steps[0]][-1] == "part 4 of 4"
    assert steps[1][0].looked_at == ((1.0, 2.0), (70.0, 72.0))
    assert verdict == Verdict("B", None, 0.95, ((1.0, 2.0), (70.0, 72.0)))


def test_the_whole_videos_answer_and_the_best_parts_win_by_confidence(video: Video) -> None:
    scene = _scene(video, strategy="divide_and_conquer")
    parts = [("A", 0.4, [(1.0, 2.0)]), ("B", 0.3, []), ("C", 0.2, []), ("D", 0.1, [])]
    whole, _ = _drive(scene, [[("C", 0.8, [(50.0, 60.0)]), *parts], [("B", 0.7)]])
    assert (whole.letter, whole.spans) == ("C", ((50.0, 60.0),))
    unsure, _ = _drive(scene, [[("C", 0.3), *parts], [("B", 0.45)]])
    assert (unsure.letter, unsure.confidence, unsure.spans) == ("A", 0.4, ((1.0, 2.0),))


def test_spans_written_without_confidence_are_not_used(video: Video) -> None:
    scene = _scene(video, strategy="divide_and_conquer")
    strategy = STRATEGIES["divide_and_conquer"](scene)
    asks = next(strategy)
    with pytest.raises(StopIteration) as stop:
        strategy.send([_said(ask, "A", 0.6, [(1.0, 2.0)], sure=9.9) for ask in asks])
    assert stop.value.value.letter == "A"


def test_subtitles_are_cut_to_each_part_and_the_clock_starts_there(video: Video) -> None:
    asks = next(STRATEGIES["divide_and_conquer"](_scene(video, strategy="divide_and_conquer")))
    assert [ask.look.inquiry.subtitles for ask in asks] == ["first\nsecond", "first", "second", "", ""]
    assert [ask.clock_start for ask in asks] == [0.0, 0.0, 32.0, 64.0, 96.0]
    assert [ask.look.inquiry.duration for ask in asks] == [DURATION, 32.0, 32.0, 32.0, 4.0]


# -- rounds ----------------------------------------------------------------------------------------------------------


def test_spans_are_looked_at_side_by_side_within_one_budget(video: Video) -> None:
    scene = _scene(video, strategy="rounds")
    spans = [(1.0, 2.0), (10.0, 11.0), (20.0, 21.0)]
    verdict, steps = _drive(scene, [[("A", 0.5, spans)], [("B", 0.6), ("C", 0.9), ("D", 0.7)]])
    assert [ask.looked_at for ask in steps[1]] == [(span,) for span in spans]
    assert sum(ask.look.plan.num_tokens for ask in steps[1]) <= scene.zoom_tokens
    assert verdict == Verdict("C", None, 0.9, tuple(spans))


def test_an_unsure_zoom_is_followed_by_the_next_span_and_then_a_wider_one(video: Video) -> None:
    scene = _scene(video, strategy="rounds", max_spans=1)
    spans = [(10.0, 11.0), (20.0, 22.0)]
    verdict, steps = _drive(scene, [[("A", 0.6, spans)], [("B", 0.4)], [("C", 0.3)], [("D", 0.8)]])
    looked = [ask.looked_at for step in steps[1:] for ask in step]
    assert looked == [((10.0, 11.0),), ((20.0, 22.0),), ((19.0, 23.0),)]
    whys = [step[0].why for step in steps]
    assert "next span" in whys[2]
    assert "2 times as wide" in whys[3]
    assert verdict == Verdict("D", None, 0.8, ((19.0, 23.0),))


def test_what_the_thinking_cites_comes_after_what_was_named(video: Video) -> None:
    scene = _scene(video, strategy="rounds", max_spans=1)
    cited = [(60.0, 61.0), (70.0, 71.0)]
    verdict, steps = _drive(
        scene, [[("A", 0.6, [(10.0, 11.0)], 11.0, cited)], [("B", 0.4)], [("C", 0.3)], [("D", 0.8)]]
    )
    assert [ask.looked_at for step in steps[1:] for ask in step] == [((10.0, 11.0),), *((span,) for span in cited)]
    assert "cites" in steps[2][0].why
    assert verdict == Verdict("D", None, 0.8, ((70.0, 71.0),))
    alone, steps = _drive(scene, [[("A", 0.6, [], 0.0, cited)], [("B", 0.9)]])
    assert steps[1][0].looked_at == ((60.0, 61.0),)
    assert "cites" in steps[1][0].why
    assert alone.spans == ((60.0, 61.0),)


def test_a_long_span_is_halved(video: Video) -> None:
    scene = _scene(video, strategy="rounds")
    verdict, steps = _drive(scene, [[("A", 0.6, [(10.0, 30.0)])], [("B", 0.4)], [("C", 0.9), ("D", 0.3)]])
    assert [ask.looked_at for ask in steps[2]] == [((10.0, 20.0),), ((20.0, 30.0),)]
    assert all(ask.look.plan.num_tokens <= scene.zoom_tokens for ask in steps[2])
    assert verdict.spans == ((10.0, 20.0),)


def test_rounds_are_bounded_and_never_look_twice(video: Video) -> None:
    scene = _scene(video, strategy="rounds", max_rounds=3)
    strategy = STRATEGIES["rounds"](scene)
    asks = list(next(strategy))
    seen, steps = [], 0
    verdict = None
    while verdict is None:
        seen += [ask.look.plan for ask in asks]
        spans = [(40.0, 60.0)] if steps == 0 else []
        asks, verdict = _send(strategy, [_said(ask, "A", 0.4 - steps / 100, spans) for ask in asks])
        steps += 1
    assert steps == 5  # the whole video, the first zoom and three rounds
    assert len(set(seen)) == len(seen)
    none = _scene(video, strategy="rounds", max_rounds=0)
    _, steps_of_none = _drive(none, [[("A", 0.9, [(40.0, 60.0)])], [("B", 0.1)]])
    assert len(steps_of_none) == 2


# -- run by the engine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_batches_answer_as_single_questions_do_and_no_pass_exceeds_its_budget(
    engine: ZoomZero, clips: list[Clip], strategy: str
) -> None:
    queries = [Query(clip.path, question.question, OPTIONS) for clip in clips for question in clip.questions]
    options = AnswerOptions(strategy, max_new_tokens=40)
    together = engine.answer_batch(queries, options)
    alone = [engine.answer_batch([query], options)[0] for query in queries]
    again = engine.answer_batch(queries, options)
    for first, second, third in zip(together, alone, again, strict=True):
        assert (first.letter, first.spans) == (second.letter, second.spans) == (third.letter, third.spans)
        assert first.confidence == third.confidence
        assert [look.plan for look in first.passes] == [look.plan for look in second.passes]
        assert all(look.cost.visual_tokens <= 32 for look in first.passes)
        assert all(look.why for look in first.passes)


def test_spans_of_a_part_are_seconds_of_the_video(engine: ZoomZero, clips: list[Clip]) -> None:
    answer = engine.answer(clips[0].path, clips[0].questions[0].question, OPTIONS, "divide_and_conquer")
    chunks = [look for look in answer.passes if look.name == "chunk"]
    assert len(chunks) == 4
    for look in chunks:
        ((start, end),) = look.looked_at
        assert all(start <= span[0] <= span[1] <= end for span in look.spans)
    assert any(look.spans for look in chunks[1:])


def test_tokens_of_the_first_pass_are_kept_and_not_encoded_again(
    engine: ZoomZero, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of a budget of 64 tokens: six tokens of the coarse pass beside the zoomed frames."""
    from zoomzero.looks import encoder as encoder_module

    settings = engine.processor.settings
    wide = dataclasses.replace(settings, kept_share=0.1, zoom=dataclasses.replace(settings.zoom, budget_tokens=64))
    keeping = ZoomZero(engine.model, VideoInputs(engine.processor.tokenizer, wide, engine.processor.geometry))
    encoded: list[int] = []
    features = encoder_module.video_features

    def counted(model: object, videos: Sequence[tuple[object, object]]) -> object:
        encoded.append(len(videos))
        return features(model, videos)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_module, "video_features", counted)
    answer = keeping.answer(clips[0].path, clips[0].questions[0].question, OPTIONS, "rounds", max_new_tokens=40)
    zooms = answer.passes[1:]
    assert zooms
    assert all(0 < look.cost.visual_tokens - look.plan.num_tokens <= 6 for look in zooms)
    assert all(look.cost.visual_tokens <= 64 for look in zooms)
    assert sum(encoded) == 1 + len(zooms)


def test_a_misspelt_strategy_is_told_without_a_model() -> None:
    with pytest.raises(ValueError, match=r"strategy must be one of single, coarse_to_fine, .*, got 'corse_to_fine'"):
        check_strategy("corse_to_fine")
    with pytest.raises(ValueError, match="got 'guess'"):
        AnswerOptions("guess")
    code = "import sys, zoomzero.answering.strategies; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rounds": -1}, "max_rounds must be at least 0, got -1"),
        ({"max_spans": 0}, "max_spans must be at least 1, got 0"),
        ({"chunk_frames": 0}, "chunk_frames must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"budget_tokens": 0}, "budget_tokens must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerOptions(**options)  # type: ignore[arg-type]


def test_paths_are_read_as_any_path(engine: ZoomZero, clips: list[Clip], tmp_path: Path) -> None:
    """Subtitles by path reach the prompt; a missing file is an error that names it."""
    file = tmp_path / "said.srt"
    file.write_text("1\n00:00:01,000 --> 00:00:03,000\nhello\n")
    answer = engine.answer(clips[0].path, "Which letter?", OPTIONS, "single", subtitles=file, max_new_tokens=2)
    plain = engine.answer(clips[0].path, "Which letter?", OPTIONS, "single", max_new_tokens=2)
    assert answer.passes[0].cost.text_tokens > plain.passes[0].cost.text_tokens
    with pytest.raises(OSError, match=r"absent\.srt"):
        engine.answer(clips[0].path, "Which letter?", OPTIONS, subtitles=tmp_path / "absent.srt")
