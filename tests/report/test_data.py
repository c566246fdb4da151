"""The page's data against figures worked out by hand, and texts that want to be more than text."""

import base64
import dataclasses
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.run_folders import made_answer, made_pass, many, write_run, write_training

from zoomzero.annotations import Sample
from zoomzero.cli import main
from zoomzero.report import read_report, write_report
from zoomzero.report.data import regular_runs
from zoomzero.report.frames import shown_times
from zoomzero.report.page import page
from zoomzero.synthetic import make_clips
from zoomzero.video import open_video

SAMPLE = Sample("gone.mp4", "Who?", ("a", "b"), "A", ((2.0, 4.0),), 10.0, "q", "t1 | t2")


def _samples(count: int) -> list[Sample]:
    return [dataclasses.replace(SAMPLE, question=f"Who {place}?") for place in range(count)]


def test_flags_and_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    answers = [
        made_answer("B", "A", (2.0, 4.0)),  # rescued, IoU 1
        made_answer("A", "B", (2.0, 4.0)),  # broken, IoU 1
        made_answer("A", "A", (4.0, 6.0), looked_at=(3.5, 6.0)),  # right, though it holds a quarter of the evidence
        None,
    ]
    data = read_report([write_run(tmp_path / "r", _samples(4), answers)]).data
    assert [question["answers"][0]["flags"] for question in data["questions"]] == [
        ["right", "rescued"], ["wrong", "broken"], ["right", "missed"], ["unanswered"],
    ]  # fmt: skip
    (run,) = data["runs"]
    assert [row["accuracy"] for row in run["strategies"]] == [0.5, 0.5]
    assert [row["cost"]["flops"] for row in run["strategies"]] == [1e9, 2e9]
    assert run["iou_histogram"] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    # All three answers are 0.8 sure, two of them right.
    assert run["calibration"]["error"] == pytest.approx(0.8 - 2 / 3, abs=1e-5)
    assert [(row["name"], row["count"], row["accuracy"]) for row in run["by_task"]] == [("t1", 4, 0.5), ("t2", 4, 0.5)]
    assert run["by_duration"][0]["name"] == "up to 1 min"
    assert run["zoom"]["rescued"] == pytest.approx(1 / 3, abs=1e-5)


def test_two_runs_meet_in_their_shared_questions(tmp_path: Path) -> None:
    samples = _samples(4)
    right, wrong = made_answer("B", "A", (2.0, 4.0)), made_answer("B", "B", (2.0, 4.0))
    first = write_run(tmp_path / "one" / "run", samples[:3], [wrong, wrong, right])
    second = write_run(tmp_path / "two" / "run", samples[1:], [right, wrong, right])
    data = read_report([first, second]).data
    assert [run["name"] for run in data["runs"]] == ["one/run", "two/run"]
    assert len(data["questions"]) == 4
    assert data["questions"][0]["answers"][1] is None
    found = data["difference"]
    assert (found["num_shared"], found["gained"], found["lost"], found["value"]) == (2, 1, 1, 0.0)


def test_cut_lines_secret_answers_and_answers_of_old_releases_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    secret = [dataclasses.replace(sample, answer="", spans=(), duration=None) for sample in _samples(2)]
    old = made_answer("B", "A", (2.0, 4.0))
    for look in old["passes"]:
        for name in ("timestamps", "num_frames", "size", "spans", "cost", "why", "words"):
            del look[name]
    folder = write_run(tmp_path / "r", secret, [old, made_answer("A", "A", (float("nan"), 1.0))])
    with (folder / "answers.jsonl").open("a") as out:
        out.write(
            '{"key": "cut',
        )
    data = read_report([folder], max_bytes=10**6).data
    assert data["runs"][0]["strategies"] == []
    assert data["runs"][0]["calibration"] is None
    assert data["questions"][0]["answers"][0]["right"] is None
    assert data["thumbnails"] == {"shown": 0, "note": "1 of 1 videos could not be read."}
    page(read_report([folder]))


@pytest.mark.parametrize(
    ("times", "runs"),
    [
        ((), []),
        ((2.5,), [[2.5, 0.0, 1]]),
        ((0.0, 0.5, 1.0, 1.5), [[0.0, 0.5, 4]]),
        ((0.0, 0.333, 0.667, 1.0, 7.0, 9.0), [[0.0, 0.3333, 4], [7.0, 2.0, 2]]),
    ],
)
def test_times_are_kept_as_even_runs(times: tuple[float, ...], runs: list[list[float]]) -> None:
    assert regular_runs(times) == runs


def test_thumbnails_are_the_frames_the_model_got(tmp_path: Path) -> None:
    clip = make_clips(tmp_path / "clips", 1, seed=5, workers=1)[0]
    sample = dataclasses.replace(SAMPLE, video=str(clip.path), duration=32.0)
    answer = made_answer("A", "A", (2.0, 4.0))
    answer["passes"] = [made_pass("coarse", "A", 0.5, size=[64, 64], timestamps=[0.0, 8.0, 16.0], num_frames=3)]
    folder = write_run(tmp_path / "r", [sample], [answer])
    report = read_report([folder], max_bytes=10**6, time_limit=None)
    (sheet,) = report.sheets
    assert report.data["questions"][0]["answers"][0]["passes"][0]["sheet"] == 0
    assert (sheet["columns"], sheet["width"], sheet["height"], sheet["times"]) == (2, 64, 64, [0.0, 8.0, 16.0])
    picture = Image.open(io.BytesIO(base64.b64decode(sheet["url"].removeprefix("data:image/webp;base64,"))))
    assert picture.size == (128, 128)
    with open_video(clip.path) as video:
        truth = video.frames_at([0.0, 8.0, 16.0])[0].numpy()
    pixels = np.asarray(picture.convert("RGB"), dtype=float)
    cells = pixels[:64, :64], pixels[:64, 64:], pixels[64:, :64]
    for cell, frame in zip(cells, truth, strict=True):
        # The clips are of the model's size here, so that only the image's compression differs; another frame is 20 off.
        assert np.abs(cell - frame).mean() < 6
    # Full: no sheet, and the page says so.
    none = read_report([folder], max_bytes=1, time_limit=None)
    assert not none.sheets
    assert "The page is full" in none.data["thumbnails"]["note"]


def test_large_frames_are_few_and_small_ones_many() -> None:
    times = tuple(range(100))
    assert len(shown_times(times, (16, 16))) == 32
    few = shown_times(times, (448, 448))
    assert (len(few), few[0], few[-1]) == (5, 0, 99)


def test_training_logs_are_read_with_the_last_line_of_a_step(tmp_path: Path) -> None:
    folder = write_training(tmp_path / "t", steps=100)
    with (folder / "metrics.jsonl").open("a") as out:
        out.write('{"step": 100, "reward": 0.25, "miou": NaN}\n{"step": 101, "rew')
    (training,) = read_report([folder]).data["trainings"]
    assert training["series"]["reward"][-1] == [100, 0.25]
    assert training["series"]["miou"][-1] == [100, 1.0]
    steps = [sample["step"] for sample in training["samples"]]
    assert (len(steps), steps[0], steps[-1]) == (40, 1, 100)


HOSTILE = (
    '</script><script>document.title="owned"</script><!--<script><img src=x onerror=alert(1)>{{policy}}\ud800\u2028'
)


def test_texts_cannot_leave_their_block(tmp_path: Path) -> None:
    sample = Sample(f"{HOSTILE}.mp4", HOSTILE, (HOSTILE, "b"), "A", (), None, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    answer = made_answer("A", "A", (0.0, 1.0), text=HOSTILE)
    answer["passes"][0] |= {"text": HOSTILE, "why": HOSTILE, "name": HOSTILE, "words": HOSTILE}
    report = read_report([write_run(tmp_path / "r", [sample], [answer])], title=HOSTILE)
    text = write_report(report, tmp_path / "p.html").read_text(encoding="utf-8")
    blocks = re.findall(r'<script type="application/json" id="([^"]*)">(.*?)</script>', text, re.DOTALL)
    assert [name for name, _ in blocks] == ["data"]
    data = json.loads(blocks[0][1])
    assert data["questions"][0]["question"] == HOSTILE
    assert data["questions"][0]["answers"][0]["passes"][0]["text"] == HOSTILE
    # Two blocks of scripts, each closed once, and the title as text.
    assert text.count("</script>") == text.count("<script") == 2
    assert html.escape(HOSTILE.replace("\ud800", "\\ud800")) in text
    assert not re.search(
        r'(src|href)=(?!"#)', re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).replace("src=x", "")
    )


def test_the_command_writes_a_page_and_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", *many(3, "gone.mp4"))
    assert main(["report", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "report.html" in captured.out
    assert "1 of 1 videos could not be read" in captured.err
    assert (folder / "report.html").stat().st_size > 10_000
    assert main(["report", str(tmp_path)]) == 1
    assert "must be the folder of an evaluation (answers.jsonl), a training (metrics.jsonl)" in capsys.readouterr().err
    assert main(["report", str(folder), str(folder), str(folder)]) == 1
    assert "needs one run or two to compare, got 3" in capsys.readouterr().err
    assert main(["report", str(folder), "--max-megabytes", "0"]) == 1
    assert "--max-megabytes must be above 0, got 0.0" in capsys.readouterr().err
