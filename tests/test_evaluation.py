"""Metrics against worked examples, and evaluation over real clips with a broken one among them."""

from pathlib import Path

import pytest

from zoomzero.annotations import Sample, load_annotations
from zoomzero.engine import ZoomZero
from zoomzero.evaluation import Prediction, evaluate, load_benchmark, metrics, nextgqa_metrics
from zoomzero.synthetic import make_clips, tiny_model, tiny_processor
from zoomzero.video import VideoError


def _sample(*spans: tuple[float, float], answer: str = "A") -> Sample:
    return Sample("v.mp4", "?", ("x", "y"), answer, spans, 20.0)


def test_official_counting_of_the_worked_example() -> None:
    """q1 is answered wrongly by a point inside its span; q3 has no prediction and is left out of the count."""
    samples = [_sample((2, 6), (10, 14)), _sample((5, 10)), _sample((0, 4)), _sample((1, 2))]
    predictions = [
        Prediction("A", ((9, 13),)),
        Prediction("B", ((7, 7),)),
        Prediction("A", ((10, 12),)),
        None,
    ]
    result = nextgqa_metrics(samples, predictions)
    assert result["num_samples"] == 3
    wanted = {"Acc@GQA": 1 / 3, "mIoP": 1.75 / 3, "IoP@0.3": 2 / 3, "IoP@0.5": 2 / 3, "mIoU": 0.2}
    assert {name: result[name] for name in wanted} == pytest.approx(wanted)
    assert (result["IoU@0.3"], result["IoU@0.5"]) == pytest.approx((1 / 3, 1 / 3))


def test_own_counting_takes_unions_and_counts_missing_predictions_as_wrong() -> None:
    samples = [_sample((0, 4), (6, 10)), _sample((0, 10)), _sample((0, 10))]
    predictions = [Prediction("A", ((0, 4), (6, 8))), Prediction("B", ()), None]
    result = metrics(samples, predictions)
    assert result["num_samples"] == 3
    wanted = {"Acc": 1 / 3, "mIoU": 0.75 / 3, "mIoP": 1 / 3, "mIoG": 0.75 / 3, "IoU@0.7": 1 / 3, "Acc@GQA": 1 / 3}
    assert {name: result[name] for name in wanted} == pytest.approx(wanted)


def test_lengths_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a prediction a sample, got 0 for 1"):
        metrics([_sample((0, 1))], [])
    with pytest.raises(ValueError, match="name must be one of nextgqa, got 'other'"):
        load_benchmark("other", tmp_path)


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
