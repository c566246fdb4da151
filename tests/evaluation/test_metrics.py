"""Countings against figures computed by hand."""

import math

import numpy as np
import pytest

from zoomzero.annotations import Sample
from zoomzero.evaluation import (
    Prediction,
    cgbench_metrics,
    metric_intervals,
    metrics,
    metrics_by,
    nextgqa_metrics,
    rextime_metrics,
    task_average,
)
from zoomzero.evaluation.bootstrap import mean_intervals


def _sample(*spans: tuple[float, float], answer: str = "A", **changes: str) -> Sample:
    return Sample("v.mp4", "?", ("x", "y"), answer, spans, 20.0, **changes)  # type: ignore[arg-type]


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
    wanted = {"Acc": 2 / 3, "Acc@GQA": 1 / 3, "mIoP": 1.75 / 3, "IoP@0.3": 2 / 3, "IoP@0.5": 2 / 3, "mIoU": 0.2}
    assert {name: result[name] for name in wanted} == pytest.approx(wanted)
    assert (result["IoU@0.3"], result["IoU@0.5"]) == pytest.approx((1 / 3, 1 / 3))


def test_own_counting_takes_unions_and_counts_missing_predictions_as_wrong() -> None:
    samples = [_sample((0, 4), (6, 10)), _sample((0, 10)), _sample((0, 10))]
    predictions = [Prediction("A", ((0, 4), (6, 8))), Prediction("B", ()), None]
    result = metrics(samples, predictions)
    assert (result["num_samples"], result["num_grounded"]) == (3, 3)
    wanted = {"Acc": 1 / 3, "mIoU": 0.75 / 3, "mIoP": 1 / 3, "mIoG": 0.75 / 3, "IoU@0.7": 1 / 3, "Acc@GQA": 1 / 3}
    assert {name: result[name] for name in wanted} == pytest.approx(wanted)


def test_own_counting_of_questions_without_evidence_or_with_secret_truth() -> None:
    samples = [_sample((0, 4)), _sample(), _sample(answer="B"), _sample(answer="")]
    predictions = [Prediction("A", ((0, 4),)), Prediction("A", ((1, 2),)), Prediction("A", ()), Prediction("A", ())]
    result = metrics(samples, predictions)
    # Two of the three with a right answer; grounding over the one that has evidence.
    assert (result["num_samples"], result["Acc"], result["num_grounded"], result["mIoU"]) == (4, 2 / 3, 1, 1)
    assert metrics(samples[1:3], predictions[1:3]) == {"num_samples": 2, "Acc": 0.5}
    assert metrics(samples[3:], predictions[3:]) == {"num_samples": 1}
    assert metrics([], []) == {"num_samples": 0}


def test_either_of_two_equal_options_is_right_in_our_counting_only() -> None:
    sample = Sample("v.mp4", "?", ("cat", "dog", "cat"), "A", ((0, 4),), 20.0)
    predictions = [Prediction("C", ((0, 4),))]
    assert (metrics([sample], predictions)["Acc"], nextgqa_metrics([sample], predictions)["Acc"]) == (1, 0)


def test_rextime_counting() -> None:
    """By hand: IoU of the first span against the best window is 0.5, 1, 0, 0; right are the first and the third."""
    samples = [_sample((0, 4), (10, 14)), _sample((5, 10)), _sample((0, 4)), _sample((1, 2))]
    predictions = [
        Prediction("A", ((12, 16), (0, 4))),  # 2 of 6 with (10, 14): 1/3
        Prediction("B", ((5, 10),)),
        Prediction("A", ()),
        None,
    ]
    result = rextime_metrics(samples, predictions)
    wanted = {
        "num_samples": 4, "mIoU": (1 / 3 + 1) / 4, "R@1,IoU=0.3": 0.5, "R@1,IoU=0.5": 0.25, "R@1,IoU=0.7": 0.25,
        "VQA": 0.5, "VQA,mIoU@0.3": 0.25, "VQA,mIoU@0.5": 0, "VQA,mIoU@0.7": 0,
    }  # fmt: skip
    assert result == pytest.approx(wanted)


def test_thresholds_are_reached_by_equality() -> None:
    sample, prediction = _sample((0, 10)), Prediction("A", ((0, 5),))
    assert rextime_metrics([sample], [prediction])["R@1,IoU=0.5"] == 1
    assert metrics([sample], [prediction])["IoU@0.5"] == 1
    assert nextgqa_metrics([_sample((0, 5))], [Prediction("A", ((0, 10),))])["Acc@GQA"] == 1


def test_cgbench_counting() -> None:
    """By hand: IoU 0.5 (two spans against two clues), 0.2, 0 (nothing named); right are the first and the third."""
    samples = [_sample((0, 4), (6, 10)), _sample((0, 10)), _sample((3, 4)), _sample((0, 1))]
    predictions = [
        Prediction("A", ((0, 2), (6, 8))),  # 4 of 8
        Prediction("B", ((8, 9), (9, 10))),  # 2 of 10
        Prediction("A", ()),
        None,
    ]
    result = cgbench_metrics(samples, predictions, [Prediction("A", ())] * 3 + [None])
    # Thresholds 0.1 and 0.2 are reached by two of four, 0.3 to 0.5 by one: (2 * 0.5 + 3 * 0.25) / 5.
    wanted = {
        "num_samples": 4, "long-acc": 0.5, "mIoU": 0.7 / 4, "rec@IoU": 0.35, "acc@IoU": 0.25, "clue-acc": 0.75,
    }  # fmt: skip
    assert result == pytest.approx(wanted)
    assert "clue-acc" not in cgbench_metrics(samples, predictions)
    assert cgbench_metrics([_sample()], [Prediction("A", ())])["mIoU"] == 0


def test_groups_and_the_average_over_tasks() -> None:
    samples = [
        _sample(task="count", duration_class="short"), _sample(task="count", duration_class="long"),
        _sample(task="count", duration_class="long"), _sample(task="ego | order", duration_class="long"),
    ]  # fmt: skip
    predictions = [Prediction("A", ()), Prediction("B", ()), None, Prediction("A", ())]
    by_task = metrics_by(samples, predictions, lambda sample: sample.tasks)
    assert {name: (row["num_samples"], row["Acc"]) for name, row in by_task.items()} == {
        "count": (3, 1 / 3), "ego": (1, 1), "order": (1, 1),
    }  # fmt: skip
    by_length = metrics_by(samples, predictions, lambda sample: [sample.duration_class])
    assert {name: row["Acc"] for name, row in by_length.items()} == {"short": 1, "long": pytest.approx(1 / 3)}
    assert task_average(samples, predictions) == pytest.approx((1 / 3 + 1 + 1) / 3)


@pytest.mark.parametrize("count", [metrics, nextgqa_metrics, rextime_metrics, cgbench_metrics, metric_intervals])
def test_lengths_are_checked(count: object) -> None:
    with pytest.raises(ValueError, match="needs a prediction per sample, got 0 for 1"):
        count([_sample((0, 1))], [])  # type: ignore[operator]


# -- intervals -------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random(400)
    rights = (values < 0.3).astype(float)
    found = mean_intervals({"mIoU": values.tolist(), "Acc": rights.tolist()}, num_resamples=4000)
    for name, column in (("mIoU", values), ("Acc", rights)):
        half = 1.96 * column.std() / math.sqrt(len(column))
        # The bounds of 4,000 resampled means scatter by about a twentieth of the half width.
        assert found[name] == pytest.approx((column.mean() - half, column.mean() + half), abs=0.15 * half)
    assert found == mean_intervals({"mIoU": values.tolist(), "Acc": rights.tolist()}, num_resamples=4000)
    narrow = mean_intervals({"mIoU": values.tolist()}, level=0.5)["mIoU"]
    assert found["mIoU"][0] < narrow[0] < values.mean() < narrow[1] < found["mIoU"][1]


def test_intervals_belong_to_the_metrics() -> None:
    samples = [_sample((0, 10), answer="AB"[i % 2]) for i in range(50)] + [_sample()] * 10
    predictions = [Prediction("A", ((0, 1 + i % 10),)) for i in range(60)]
    figures, found = metrics(samples, predictions), metric_intervals(samples, predictions)
    assert set(found) == set(figures) - {"num_samples", "num_grounded"}
    assert all(low <= figures[name] <= high for name, (low, high) in found.items())
    assert found["mIoP"] == (1, 1)
    assert metric_intervals([], []) == {}


def test_interval_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 1"):
        mean_intervals({"a": [1.0]}, level=1)
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        mean_intervals({"a": [1.0]}, num_resamples=0)
    with pytest.raises(ValueError, match=r"columns must have one length, got \[1, 2\]"):
        mean_intervals({"a": [1.0], "b": [1.0, 2.0]})
    assert mean_intervals({"a": []}) == {}
