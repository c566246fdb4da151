"""Figures of whole evaluations against those computed by hand from written answers."""

from typing import Any

import pytest

from zoomzero.annotations import Sample
from zoomzero.evaluation import AnswerRecord, Evaluation, Prediction, official_metrics, summarize
from zoomzero.evaluation.records import question_keys
from zoomzero.evaluation.summary import zoom_figures


def _sample(*spans: tuple[float, float], answer: str = "A", **fields: Any) -> Sample:
    return Sample("v.mp4", "?", ("x", "y"), answer, spans, 20.0, **fields)


def _record(
    coarse: str | None, final: str | None, spans: list[Any], looked_at: Any = None, text: str = ""
) -> AnswerRecord:
    look = {"name": "coarse", "text": text, "letter": coarse, "confidence": 0.5, "num_tokens": 32, "looked_at": []}
    passes = [look]
    if looked_at is not None:
        passes.append({**look, "name": "zoom", "letter": final, "looked_at": looked_at})
    cost = {"visual_tokens": 32 * len(passes), "text_tokens": 10, "seconds": 1.0, "flops": 5.0}
    return AnswerRecord.from_dict(
        {"letter": final, "spans": spans, "confidence": 0.5, "passes": passes, "timings": {"read": 0.1}, "cost": cost}
    )


def test_the_span_named_first_is_counted_by_those_who_count_one() -> None:
    text = "<answer>A</answer>\n<glue>[(10, 12), (2, 4), (11, 99)]</glue>"
    record = _record("A", "A", [[2, 4], [10, 20]], text=text)
    assert record.prediction.spans == ((2, 4), (10, 20))
    assert record.official_prediction.spans[0] == (10, 12)
    # Cut to the video as the union is; the first that lies in it counts.
    text = "<answer>A</answer>\n<glue>[(30, 40), (18, 99)]</glue>"
    assert _record("A", "A", [[18, 20]], text=text).official_prediction.spans[0] == (18, 20)
    assert _record("A", "A", [], text=text).official_prediction.spans == ()
    samples = [_sample((10, 12))]
    result = Evaluation([record], [], 1.0, {})
    assert official_metrics("nextgqa", samples, result.official_predictions)["mIoU"] == 1
    assert official_metrics(None, samples, result.official_predictions)["mIoU"] == 1
    assert official_metrics("rextime", samples, result.official_predictions)["R@1,IoU=0.7"] == 1
    # Two of twelve seconds, whichever was named first.
    assert official_metrics("cgbench", samples, result.official_predictions)["mIoU"] == pytest.approx(2 / 12)


def test_what_zooming_did() -> None:
    """Rescued: q0; broken: q1; right both times: q2; wrong both times: q3; q4 was not zoomed, q5 has no answer."""
    samples = [_sample((0, 4)), _sample((0, 4)), _sample((0, 4), (10, 14)), _sample(), _sample((0, 4)), _sample((0, 4))]
    answers = [
        _record("B", "A", [[0, 4]], looked_at=[[0, 4]]),
        _record("A", "B", [[0, 1]], looked_at=[[0, 1]]),  # covers a quarter of the evidence
        _record("A", "A", [[0, 4]], looked_at=[[0, 4]]),  # covers half of it
        _record("B", "B", [], looked_at=[]),  # without evidence
        _record("A", "A", [[0, 4]]),
        None,
    ]
    assert zoom_figures(samples, answers) == pytest.approx(
        {
            "num_zoomed": 4, "rescued": 0.25, "broken": 0.25,
            "held_evidence": 2 / 3, "Acc_held": 1.0, "Acc_missed": 0.0,
        }
    )  # fmt: skip
    assert zoom_figures(samples[4:], answers[4:]) == {}
    # A zoom pass over the whole video holds all evidence.
    assert zoom_figures(samples[:1], [_record("A", "A", [], looked_at=[])])["held_evidence"] == 1


def test_countings_of_benchmarks_without_evidence() -> None:
    samples = [
        _sample(task="count", duration_class="short"), _sample(task="count", duration_class="long"),
        _sample(task="ego", duration_class="long"), _sample(task="ego | order", duration_class="long"),
    ]  # fmt: skip
    predictions = [Prediction("A", ()), Prediction("B", ()), None, Prediction("A", ())]
    assert official_metrics("videomme", samples, predictions) == pytest.approx(
        {"num_samples": 4, "Acc": 0.5, "short": 1, "long": 1 / 3, "count": 0.5, "ego": 0.5, "order": 1}
    )
    assert official_metrics("mlvu", samples, predictions)["M-Avg"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert official_metrics("lvbench", samples, predictions)["order"] == 1
    assert official_metrics("rextime", [_sample(answer="")], [None]) == {}


def test_costs_are_means_over_answers() -> None:
    samples = [_sample((0, 4), task="t", category="c"), _sample((0, 4))]
    answers = [_record("A", "A", [[0, 4]], looked_at=[[0, 4]]), None]
    summary = summarize(samples, Evaluation(answers, [(1, "gone")], 0.5, {"Acc": 0.5}), "nextgqa")
    assert summary["mean_cost"] == {"visual_tokens": 64, "text_tokens": 10, "seconds": 1, "flops": 5}
    assert (summary["by_category"]["c"]["Acc"], summary["by_task"]["t"]["mIoU"]) == (1, 1)
    assert summary["skipped"] == [{"index": 1, "question_id": "", "video": "v.mp4", "reason": "gone"}]


@pytest.mark.parametrize(
    "change",
    [
        {"letter": 3}, {"spans": [[1]]}, {"spans": 3}, {"confidence": "x"}, {"passes": [{}]}, {"passes": None},
        {"timings": 3}, {"cost": {"flops": None}},
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(change: dict[str, Any]) -> None:
    good = {"letter": "A", "spans": [], "confidence": 0.5, "passes": [], "timings": {}, "cost": {}}
    assert AnswerRecord.from_dict(good).letter == "A"
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        AnswerRecord.from_dict({**good, **change})


def test_keys_tell_questions_apart_and_survive_a_move() -> None:
    samples = [_sample(question_id="1"), _sample(question_id="2"), _sample(question_id="1")]
    keys = question_keys(samples)
    assert len(set(keys)) == 3
    moved = [Sample("/far/v.mp4", "?", ("x", "y"), "A", ((1, 2),), 3.0, question_id="2")]
    assert question_keys(moved) == [keys[1]]
