"""The demo in small: every step for real, and what its page holds; tests/report looks at pages in a browser."""

import json
from pathlib import Path

import pytest

from zoomzero.answering.engine import ZoomZero
from zoomzero.demo import DemoOptions, check_outcome, run_demo


def test_demo_leaves_its_summary_checkpoint_and_page(tmp_path: Path) -> None:
    options = DemoOptions(
        out=tmp_path / "run", clips=tmp_path / "clips", steps=2, num_prompts=2, num_rollouts=2, num_test=4
    )
    summary = run_demo(options)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    for label in ("before", "after"):
        assert set(summary[label]) == {"miou", "coarse_accuracy", "zoom_accuracy"}
        assert all(0 <= value <= 1 for value in summary[label].values())
    page = Path(summary["report"]).read_text()
    data = json.loads(page.split('id="data">', 1)[1].split("</script>", 1)[0])
    assert [(run["name"], run["num_answered"]) for run in data["runs"]] == [("before", 4), ("after", 4)]
    assert data["thumbnails"] == {"shown": 4, "note": ""}
    assert all(look["sheet"] is not None for look in data["questions"][0]["answers"][1]["passes"])
    (training,) = data["trainings"]
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert training["series"]["miou"] == [
        [step, pytest.approx(entry["miou"], rel=1e-5)] for step, entry in enumerate(history, start=1)
    ]
    assert [sample["step"] for sample in training["samples"]] == [1, 2]
    assert {"entropy/rest", "clip_ratio/region_mean/span"} <= set(training["series"])
    ZoomZero.from_pretrained(tmp_path / "run" / "checkpoint", device="cpu")


def test_outcome_is_judged() -> None:
    before = {"miou": 0.5, "coarse_accuracy": 0.25, "zoom_accuracy": 0.7}
    assert not check_outcome({"before": before, "after": {**before, "miou": 0.65}})
    assert "mIoU rose from 0.5 to 0.55" in check_outcome({"before": before, "after": {**before, "miou": 0.55}})[0]
    worse = {"miou": 0.7, "coarse_accuracy": 0.4, "zoom_accuracy": 0.7}
    assert "zooming answers 0.7" in check_outcome({"before": before, "after": worse})[0]
