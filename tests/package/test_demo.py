"""The demo in small: every step for real, then the page as a browser reads it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zoomzero.annotations import Sample
from zoomzero.answering.engine import ZoomZero
from zoomzero.demo import DemoOptions, check_outcome, run_demo
from zoomzero.report import Example, Report, write_page
from zoomzero.synthetic import make_clips


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
    assert page.count('class="card"') == 3
    assert "Chosen, not drawn at random" in page
    assert page.count("data:image/png;base64,") == 9
    assert page.count('<svg class="curve"') == 6
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 2
    ZoomZero.from_pretrained(tmp_path / "run" / "checkpoint", device="cpu")


def test_outcome_is_judged() -> None:
    before = {"miou": 0.5, "coarse_accuracy": 0.25, "zoom_accuracy": 0.7}
    assert not check_outcome({"before": before, "after": {**before, "miou": 0.65}})
    assert "mIoU rose from 0.5 to 0.55" in check_outcome({"before": before, "after": {**before, "miou": 0.55}})[0]
    worse = {"miou": 0.7, "coarse_accuracy": 0.4, "zoom_accuracy": 0.7}
    assert "zooming answers 0.7" in check_outcome({"before": before, "after": worse})[0]


HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=1">\ud800'


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    clip = make_clips(folder, 1, seed=41)[0]
    sample = Sample(str(clip.path), HOSTILE, (HOSTILE, "B"), "A", clip.questions[0].spans, clip.duration)
    engine = ZoomZero.from_pretrained(device="cpu")
    answer = engine.answer(sample.video, HOSTILE, sample.options, max_new_tokens=40, keep_frames=True)
    report = Report(
        title="page",
        lead=HOSTILE,
        before={"figure": 0.1},
        after={"figure": 0.2},
        table_note=HOSTILE,
        examples_note=HOSTILE,
        curves={HOSTILE: [0.1, float("nan"), 0.3]},
        examples=[Example(sample, answer, answer)],
        facts=[(HOSTILE, HOSTILE)],
    )
    return write_page(report, folder / "index.html")


def test_everything_shown_is_escaped(hostile_page: Path) -> None:
    html = hostile_page.read_text()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;" in html
    # What is no valid text is written out.
    assert r"\ud800" in html
    # Nothing is loaded from anywhere.
    assert not re.search(r'(src|href)="(?!data:image/png;base64,)', html)


def test_chromium_shows_the_page(hostile_page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have Chromium; .ci/run installs it")
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [browser, *flags.split(), "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}"]
    address = hostile_page.resolve().as_uri()
    dom = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert "<title>page</title>" in dom.stdout
    assert "owned" in dom.stdout  # as text
    shot = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={shot}", "--window-size=1100,1600", address], timeout=120, check=True)
    assert shot.stat().st_size > 20_000
