"""Evaluation over real clips with broken ones among them."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.decoders import stop_at

from zoomzero.annotations import Sample, load_annotations
from zoomzero.answering.engine import Reading, ZoomZero
from zoomzero.budget import FramePlan
from zoomzero.evaluation import (
    Evaluation,
    EvaluationStopped,
    evaluate,
    load_benchmark,
)
from zoomzero.evaluation import run as evaluation
from zoomzero.patches import VideoPatches
from zoomzero.synthetic import make_clips, tiny_model, tiny_processor
from zoomzero.video import Video, VideoError


def test_unreadable_videos_are_counted_as_wrong_and_listed(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, 2, seed=11)
    clips[1].path.write_text("not a video")
    samples = load_benchmark("nextgqa", tmp_path)
    engine = ZoomZero(tiny_model(), tiny_processor())
    result = evaluate(engine, samples, batch_size=3, max_new_tokens=2, max_skipped_fraction=0.5)
    assert [index for index, _ in result.skipped] == [2, 3]
    assert all(clips[1].path.name in reason for _, reason in result.skipped)
    assert [answer is None for answer in result.answers] == [False, False, True, True]
    assert result.metrics["num_samples"] == 4
    with pytest.raises(VideoError, match=clips[1].path.name):
        evaluate(engine, samples, batch_size=3, max_new_tokens=2, max_skipped_fraction=0.25)


def test_batch_size_does_not_change_answers(tmp_path: Path) -> None:
    make_clips(tmp_path, 2, seed=12)
    samples = load_annotations(tmp_path / "annotations.json")
    engine = ZoomZero(tiny_model(), tiny_processor())
    one, four = (evaluate(engine, samples, batch_size=size, max_new_tokens=6) for size in (1, 4))
    for first, second in zip(one.answers, four.answers, strict=True):
        assert first is not None
        assert second is not None
        assert (first.letter, first.passes[0].text) == (second.letter, second.passes[0].text)
        assert first.confidence == pytest.approx(second.confidence, abs=1e-4)
    with pytest.raises(ValueError, match="needs at least one sample"):
        evaluate(engine, [])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(engine, samples, batch_size=0)
    with pytest.raises(ValueError, match="ahead must be at least 1, got 0"):
        evaluate(engine, samples, read_ahead=0)
    with pytest.raises(ValueError, match="time_limit must be positive seconds, got -1"):
        evaluate(engine, samples, time_limit=-1)


# -- reading ahead, skipping, stopping -------------------------------------------------------------------------------


def _questions(folder: Path, count: int) -> list[Sample]:
    make_clips(folder, count, seed=13)
    return load_annotations(folder / "annotations.json")


def _equal(first: Evaluation, second: Evaluation) -> bool:
    """Same answers, times aside."""
    return [a and (a.letter, a.spans, a.confidence, [p.text for p in a.passes]) for a in first.answers] == [
        a and (a.letter, a.spans, a.confidence, [p.text for p in a.passes]) for a in second.answers
    ]


def test_questions_on_one_video_open_and_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _questions(tmp_path, 2)
    # The first video comes back after the second: its frame table is still there.
    samples = [*samples, samples[0]]
    opened: list[str] = []
    encoded: list[str] = []
    real = evaluation.open_video

    def counting(path: str, **options: Any) -> Video:
        opened.append(Path(path).name)
        return real(path, **options)

    engine = ZoomZero(tiny_model(), tiny_processor())
    encode = engine.processor.read
    monkeypatch.setattr(evaluation, "open_video", counting)
    monkeypatch.setattr(engine.processor, "read", lambda v, p: encoded.append(v.path) or encode(v, p))
    result = evaluate(engine, samples, strategy="single", batch_size=1, read_ahead=1, max_new_tokens=2)
    assert len(result.answers) == 5
    assert opened == [Path(samples[0].video).name, Path(samples[2].video).name]
    assert len(encoded) == 3


def test_the_next_video_is_read_while_the_model_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits inside its first batch until the second video was read: without reading ahead it never would."""
    samples = _questions(tmp_path, 2)
    engine = ZoomZero(tiny_model(), tiny_processor())
    next_is_read = threading.Event()
    read, answer = engine.read, engine.answer_readings

    def watched_read(video: str, *args: Any, **options: Any) -> Reading:
        reading = read(video, *args, **options)
        if video == samples[2].video:
            next_is_read.set()
        return reading

    def waiting_answer(asked: Any, *args: Any, **options: Any) -> Any:
        assert next_is_read.wait(60), "the second video was not read while the first batch was answered"
        return answer(asked, *args, **options)

    monkeypatch.setattr(engine, "read", watched_read)
    monkeypatch.setattr(engine, "answer_readings", waiting_answer)
    ahead = evaluate(engine, samples, batch_size=2, max_new_tokens=6)
    monkeypatch.undo()
    assert _equal(ahead, evaluate(engine, samples, batch_size=2, max_new_tokens=6, time_limit=None))


@pytest.mark.parametrize("in_pass", ["coarse", "zoom"])
def test_frames_of_two_videos_are_read_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_pass: str
) -> None:
    """Each reading waits until the other video's has begun: one after the other they never would."""
    samples = _questions(tmp_path, 2)[::2]
    engine = ZoomZero(tiny_model(), tiny_processor())
    read, both = engine.processor.read, threading.Barrier(2, timeout=60)

    def meeting(video: Video, plan: FramePlan) -> VideoPatches:
        # The zoom pass has four frames at most.
        if (len(plan.timestamps) <= 4) == (in_pass == "zoom"):
            both.wait()
        return read(video, plan)

    monkeypatch.setattr(engine.processor, "read", meeting)
    result = evaluate(engine, samples, batch_size=2, max_new_tokens=2, num_decoders=2)
    assert None not in result.answers
    with pytest.raises(ValueError, match="num_decoders must be at least 1, got 0"):
        evaluate(engine, samples, num_decoders=0)


def test_the_wait_for_frames_counts_those_of_later_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _questions(tmp_path, 2)[::2]
    engine = ZoomZero(tiny_model(), tiny_processor())
    read = engine.processor.read

    def slow(video: Video, plan: FramePlan) -> VideoPatches:
        time.sleep(0.2 if len(plan.timestamps) <= 4 else 0)
        return read(video, plan)

    monkeypatch.setattr(engine.processor, "read", slow)
    result = evaluate(engine, samples, batch_size=2, max_new_tokens=2, num_decoders=1, run_folder=tmp_path / "run")
    assert result.waited_seconds >= 0.4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["waited_seconds"] == result.waited_seconds


def test_answers_and_skipped_samples_are_on_disk_when_too_many_are_unreadable(tmp_path: Path) -> None:
    samples = _questions(tmp_path / "clips", 3)
    Path(samples[2].video).write_text("not a video")
    Path(samples[4].video).unlink()
    engine = ZoomZero(tiny_model(), tiny_processor())
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        EvaluationStopped,
        match=r"no such file; 3 of 6 samples have no readable video, more than max_skipped_fraction=0\.4 allows; see",
    ) as stopped:
        evaluate(engine, samples, max_new_tokens=2, max_skipped_fraction=0.4, run_folder=tmp_path / "run")
    kept = stopped.value.answers
    assert [answer is None for answer in kept] == [False, False, True, True, True]
    lines = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert lines[0]["letter"] == kept[0].letter
    assert [look["name"] for look in lines[0]["passes"]] == ["coarse", "zoom"]
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [Path(line["path"]).name for line in skipped] == [Path(samples[i].video).name for i in (2, 3, 4)]
    assert not any(thread.name.startswith("zoomzero-load") for thread in threading.enumerate())
    # The channel to the decoding process may have been opened meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= handles + 2
    enough = evaluate(engine, samples, max_new_tokens=2, max_skipped_fraction=0.7)
    assert enough.metrics["num_skipped"] == 4
    assert enough.metrics["num_samples"] == 6


def test_a_video_that_breaks_in_the_zoom_costs_its_own_sample_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = _questions(tmp_path, 2)
    engine = ZoomZero(tiny_model(), tiny_processor())
    whole = evaluate(engine, samples, batch_size=4, max_new_tokens=6)
    encode = engine.processor.read

    def breaking(video: Video, plan: FramePlan) -> VideoPatches:
        # The zoom pass has four frames at most.
        if video.path == samples[0].video and len(plan.timestamps) <= 4:
            raise VideoError(video.path, "the frame at 3.000 s cannot be decoded")
        return encode(video, plan)

    monkeypatch.setattr(engine.processor, "read", breaking)
    result = evaluate(engine, samples, batch_size=4, max_new_tokens=6, max_skipped_fraction=0.5)
    assert [answer is None for answer in result.answers] == [True, True, False, False]
    for index in (2, 3):
        assert result.answers[index].letter == whole.answers[index].letter
    with pytest.raises(VideoError, match=r"the frame at 3\.000 s cannot be decoded"):
        engine.answer(samples[0].video, samples[0].question, samples[0].options, max_new_tokens=6)


def test_a_decoder_that_hangs_costs_its_own_samples_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoding process is stopped by a signal while the second video is its turn; the others are answered."""
    samples = _questions(tmp_path, 3)
    engine = ZoomZero(tiny_model(), tiny_processor())
    stop_at(monkeypatch, samples[2].video)
    evaluate(engine, samples[:1], max_new_tokens=2)  # the process is there
    result = evaluate(engine, samples, max_new_tokens=2, max_skipped_fraction=0.5, time_limit=1.0, read_ahead=1)
    assert [answer is None for answer in result.answers] == [False, False, True, True, False, False]
    assert all("gave no sign of life for 1 s" in reason for _, reason in result.skipped)
