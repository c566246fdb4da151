"""The ablation's own arithmetic, against scipy and by hand; its runs are made by `make ablation`."""

import importlib
import sys
from pathlib import Path

import pytest
from scipy import stats

from zoomzero.annotations import Sample
from zoomzero.intervals import intersection, total_length

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ablation"


@pytest.fixture(scope="module")
def ablation():
    """Imports a module of the ablation, which is a folder of scripts beside each other."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in ("plan", "analysis", "train_one", "run_all"):
        sys.modules.pop(name, None)


def _line(arm, seed, miou, acc, **changes):
    figures = {"80": {"mIoU": miou, "Acc": acc}}
    return {
        "arm": arm,
        "seed": seed,
        "labels": "clean",
        "start": "first",
        "curve": False,
        "figures": figures,
        **changes,
    }


def test_the_reduced_set_and_the_curve_are_part_of_the_full_one(ablation):
    plan = ablation("plan")
    assert set(plan.REDUCED) <= set(plan.FULL)
    assert set(plan.CURVE) <= set(plan.FULL)
    assert len(plan.FULL) == len(set(plan.FULL)) == 7 * 6 + 7 * 5 + 3 * 5 + 6
    # A set that is cut short still compares the same seeds of every arm.
    assert [run.seed for run in plan.REDUCED] == sorted(run.seed for run in plan.REDUCED)


def test_differences_are_those_of_scipys_paired_test(ablation):
    analysis = ablation("analysis")
    base = [0.70, 0.72, 0.69, 0.74, 0.71]
    other = [0.73, 0.74, 0.70, 0.78, 0.73]
    lines = [_line("plain", seed, value, 0.5) for seed, value in enumerate(base)]
    lines += [_line("segments", seed, value, 0.5) for seed, value in enumerate(other)]
    # A seed that the baseline lacks, another start and a run of the curve are not compared.
    lines += [_line("segments", 9, 0.0, 0.0), _line("segments", 1, 0.0, 0.0, start="second")]
    lines += [_line("segments", 2, 0.0, 0.0, curve=True)]
    miou, acc = analysis.differences(analysis.by_arm(lines, "clean", "first"))
    truth = stats.ttest_rel(other, base)
    low, high = truth.confidence_interval(0.95)
    assert (miou.figure, miou.num_seeds) == ("mIoU", 5)
    assert miou.p == pytest.approx(truth.pvalue)
    assert (miou.mean - miou.half_width, miou.mean + miou.half_width) == pytest.approx((low, high))
    assert miou.corrected == pytest.approx(2 * truth.pvalue)
    assert miou.visible > miou.half_width
    assert (acc.mean, acc.p, acc.visible) == (0.0, 1.0, 0.0)


def test_holms_correction_by_hand(ablation):
    assert ablation("analysis").holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_wrong_spans_are_elsewhere_and_as_long(ablation):
    samples = [Sample("clip.mp4", "?", ("a", "b"), "A", ((4.0, 9.5),), 32.0) for _ in range(40)]
    changed = ablation("train_one").with_wrong_spans(samples, 0.5, seed=3)
    moved = [sample.spans for sample in changed if sample.spans != ((4.0, 9.5),)]
    assert len(moved) == 20
    for spans in moved:
        assert intersection(spans, [(4.0, 9.5)]) == 0
        assert total_length(spans) == 5.5
        assert 0 <= spans[0][0] < spans[0][1] <= 32
    assert changed == ablation("train_one").with_wrong_spans(samples, 0.5, seed=3)
    assert changed != ablation("train_one").with_wrong_spans(samples, 0.5, seed=4)
    assert ablation("train_one").with_wrong_spans(samples, 0.0, seed=3) == samples


def test_a_cut_line_is_dropped_before_the_next_is_written(ablation, tmp_path):
    main = ablation("run_all")
    runs = tmp_path / "runs.jsonl"
    runs.write_text('{"seed": 1}\n{"seed": 2, "fig')
    assert main.finished(runs) == [{"seed": 1}]
    main.drop_cut_line(runs)
    assert runs.read_text() == '{"seed": 1}\n'
    main.drop_cut_line(tmp_path / "none.jsonl")
