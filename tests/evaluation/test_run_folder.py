"""A run's folder: nothing lost, nothing twice, whatever ends the run that wrote into it."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zoomzero.annotations import Sample, load_annotations
from zoomzero.answering.engine import ZoomZero
from zoomzero.cli import main
from zoomzero.evaluation import Evaluation, Processes, evaluate, run_folder
from zoomzero.synthetic import make_clips, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def engine() -> ZoomZero:
    return ZoomZero(tiny_model(), tiny_processor())


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 3, seed=17)
    return load_annotations(folder / "annotations.json")


def _run(engine: ZoomZero, samples: list[Sample], folder: Path, **options: Any) -> Evaluation:
    return evaluate(engine, samples, run_folder=folder, **{"max_new_tokens": 3, "batch_size": 2, **options})


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def _asked(engine: ZoomZero, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that reach the model from now on."""
    asked: list[str] = []
    real = engine.answer_readings

    def counting(queries: Any, *args: Any) -> Any:
        asked.extend(query.question for query, _ in queries)
        return real(queries, *args)

    monkeypatch.setattr(engine, "answer_readings", counting)
    return asked


def test_a_run_goes_on_where_it_was_and_gives_the_same_result(
    engine: ZoomZero, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(engine, samples, tmp_path / "whole")
    assert (whole.num_resumed, len(_lines(tmp_path / "whole"))) == (0, 6)
    folder = tmp_path / "part"
    first = _run(engine, samples[:3], folder)
    asked = _asked(engine, monkeypatch)
    progress: list[tuple[int, int]] = []
    second = _run(engine, samples, folder, on_progress=lambda done, total: progress.append((done, total)))
    assert asked == [sample.question for sample in samples[3:]]
    assert progress == [(3, 6), (5, 6), (6, 6)]
    assert second.num_resumed == 3
    assert second.answers[:3] == first.answers
    # A batch of other size rounds differently; words and spans are the same.
    assert [(a.letter, a.spans, a.passes[0].text) for a in second.answers if a] == [
        (a.letter, a.spans, a.passes[0].text) for a in whole.answers if a
    ]
    assert second.metrics == whole.metrics
    assert [line["index"] for line in _lines(folder)] == [0, 1, 2, 3, 4, 5]
    asked.clear()
    # Once more, with fewer and moved questions: nothing is asked.
    moved = [dataclasses.replace(sample, video=f"/elsewhere/{Path(sample.video).name}") for sample in samples[1:]]
    assert _run(engine, moved, folder).answers == second.answers[1:]
    assert asked == []


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(engine: ZoomZero, samples: list[Sample], tmp_path: Path) -> None:
    """kill -9 in the middle of a run: every whole line is kept, every question answered once."""
    folder = tmp_path / "run"
    code = (
        "import sys, time\n"
        "from zoomzero.annotations import load_annotations\n"
        "from zoomzero.answering.engine import ZoomZero\n"
        "from zoomzero.evaluation import evaluate\n"
        "from zoomzero.synthetic import tiny_model, tiny_processor\n"
        "engine = ZoomZero(tiny_model(), tiny_processor())\n"
        "evaluate(engine, load_annotations(sys.argv[1]), run_folder=sys.argv[2], max_new_tokens=3, batch_size=1,\n"
        "    on_progress=lambda *_: time.sleep(0.5))\n"
    )
    annotations = Path(samples[0].video).parent / "annotations.json"
    process = subprocess.Popen([sys.executable, "-c", code, str(annotations), str(folder)])
    try:
        deadline = time.monotonic() + 120
        while not (folder / "answers.jsonl").exists() or len((folder / "answers.jsonl").read_bytes().split(b"\n")) < 3:
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # While it lives nobody else may write there.
        with pytest.raises(ValueError, match=f"only one run may write into a folder, got .* process {process.pid};"):
            _run(engine, samples, folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    # As a cut by the kill would leave it, in the middle of a character.
    with (folder / "answers.jsonl").open("ab") as out:
        out.write('{"key": "ü'.encode()[:-1])
    kept = len(_lines_of_whole(folder))
    result = _run(engine, samples, folder, batch_size=1)
    assert (result.num_resumed, result.num_set_aside) == (kept, 1)
    assert sorted(line["index"] for line in _lines(folder)) == [0, 1, 2, 3, 4, 5]
    assert not any(answer is None for answer in result.answers)


def _lines_of_whole(folder: Path) -> list[bytes]:
    return (folder / "answers.jsonl").read_bytes().split(b"\n")[:-1]


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_cut_and_foreign_lines_are_set_aside_and_answered_again(
    engine: ZoomZero, samples: list[Sample], tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = _run(engine, samples, tmp_path)
    file = tmp_path / "answers.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1]
    # One in the middle that is JSON but no answer, one glued to the next, the last one cut.
    broken = [lines[0], b'{"key": "x", "letter": 3}', lines[1], lines[2] + lines[3], lines[4], lines[5][:cut]]
    file.write_bytes(b"\n".join(broken))
    after = _run(engine, samples, tmp_path)
    assert (after.num_resumed, after.num_set_aside) == (3, 3)
    assert "3 of 6 lines are no whole answers; they are in set_aside.jsonl now" in caplog.text
    assert (tmp_path / "set_aside.jsonl").read_bytes().split(b"\n")[:-1] == [broken[1], broken[3], broken[5]]
    assert sorted(line["index"] for line in _lines(tmp_path)) == [0, 1, 2, 3, 4, 5]
    assert [a.letter for a in after.answers if a] == [a.letter for a in before.answers if a]
    again = _run(engine, samples, tmp_path)
    assert (again.num_resumed, again.num_set_aside) == (6, 0)


def test_a_last_line_without_its_end_is_whole_and_nothing_is_glued_to_it(
    engine: ZoomZero, samples: list[Sample], tmp_path: Path
) -> None:
    _run(engine, samples[:2], tmp_path)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    result = _run(engine, samples, tmp_path)
    assert (result.num_resumed, result.num_set_aside, len(_lines(tmp_path))) == (2, 0, 6)


def test_answers_made_otherwise_are_never_mixed(engine: ZoomZero, samples: list[Sample], tmp_path: Path) -> None:
    _run(engine, samples[:2], tmp_path)
    with pytest.raises(ValueError, match="were made with strategy='coarse_to_fine', got 'single'; choose another fol"):
        _run(engine, samples, tmp_path, strategy="single")
    with pytest.raises(ValueError, match="were made with max_new_tokens=3, got 4"):
        _run(engine, samples, tmp_path, max_new_tokens=4)
    others = [dataclasses.replace(sample, question="Why?") for sample in samples]
    with pytest.raises(ValueError, match="must hold answers to these questions, got 2 to others"):
        _run(engine, others, tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run\.json: must be the settings of a run"):
        _run(engine, samples, tmp_path)


def test_equal_questions_are_answered_each(engine: ZoomZero, samples: list[Sample], tmp_path: Path) -> None:
    result = _run(engine, [samples[0], samples[1], samples[0]], tmp_path)
    assert len({line["key"] for line in _lines(tmp_path)}) == 3
    assert _run(engine, [samples[0], samples[1], samples[0]], tmp_path).answers == result.answers


def test_a_full_disk_ends_the_run_with_the_files_name_and_loses_no_answer(
    engine: ZoomZero, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, []

    def full(handle: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{handle}").readlink().name != "answers.jsonl":
            return real(handle, data)
        calls.append(len(data))
        if len(calls) == 4:
            # Half of the line fits.
            return real(handle, data[: len(data) // 2])
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    monkeypatch.setattr(run_folder.os, "write", full)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device: .*answers\.jsonl"):
        _run(engine, samples, tmp_path)
    monkeypatch.undo()
    result = _run(engine, samples, tmp_path)
    assert (result.num_resumed, result.num_set_aside) == (3, 1)
    assert sorted(line["index"] for line in _lines(tmp_path)) == [0, 1, 2, 3, 4, 5]


def test_text_that_utf8_cannot_hold_is_kept(engine: ZoomZero, samples: list[Sample], tmp_path: Path) -> None:
    """Lone surrogates in a question and in a file's name (which is then not UTF-8) end nothing and read back."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/clip \xff.mp4"))
    place.write_bytes(Path(samples[0].video).read_bytes())
    odd = [
        dataclasses.replace(sample, video=str(place), question=f"{sample.question} \ud800?") for sample in samples[:2]
    ]
    odd += samples[2:4]
    folder = tmp_path / "run"
    first = _run(engine, odd, folder)
    assert not any(answer is None for answer in first.answers)
    lines = _lines(folder)
    assert (lines[0]["question"], lines[0]["video"]) == (odd[0].question, odd[0].video)
    assert _run(engine, odd, folder).num_resumed == 4
    # The same of a video that cannot be read.
    place.write_text("not a video")
    result = _run(engine, odd, tmp_path / "unread", max_skipped_fraction=0.5)
    assert [index for index, _ in result.skipped] == [0, 1]
    skipped = [json.loads(line) for line in (tmp_path / "unread" / "skipped.jsonl").read_text().splitlines()]
    assert [line["path"] for line in skipped] == [str(place)] * 2
    assert json.loads((tmp_path / "unread" / "summary.json").read_text())["skipped"][0]["video"] == str(place)


def test_subtitles_reach_the_model_and_broken_ones_are_found_first(
    engine: ZoomZero, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.srt"
    file.write_text("1\n00:00:01,000 --> 00:00:02,000\nHello there\n")
    told = [dataclasses.replace(samples[0], subtitles=str(file)), samples[1]]
    seen: list[Any] = []
    real = engine.answer_readings
    monkeypatch.setattr(
        engine, "answer_readings", lambda asked, *rest: seen.extend(q for q, _ in asked) or real(asked, *rest)
    )
    _run(engine, told, tmp_path / "with", use_subtitles=True)
    assert [query.subtitles for query in seen] == [str(file), None]
    seen.clear()
    _run(engine, told, tmp_path / "without")
    assert [query.subtitles for query in seen] == [None, None]
    seen.clear()
    file.unlink()
    with pytest.raises((ValueError, OSError), match=r"a\.srt"):
        _run(engine, told, tmp_path / "broken", use_subtitles=True)
    assert seen == []


def test_the_summary_holds_all_figures(engine: ZoomZero, samples: list[Sample], tmp_path: Path) -> None:
    named = [dataclasses.replace(sample, task=f"t{i % 2}", question_id=str(i)) for i, sample in enumerate(samples)]
    named[4] = dataclasses.replace(named[4], video=str(tmp_path / "absent.mp4"))
    named[5] = dataclasses.replace(named[5], duration=40.0)
    result = _run(engine, named, tmp_path / "run", max_skipped_fraction=0.5)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"] == result.metrics
    assert summary["metrics"]["num_skipped"] == 1
    assert set(summary["by_task"]) == {"t0", "t1"}
    assert summary["official"]["num_samples"] <= 5
    assert set(summary["intervals"]) == set(result.metrics) - {"num_samples", "num_grounded", "num_skipped"}
    assert [entry["question_id"] for entry in summary["skipped"]] == ["4"]
    assert summary["wrong_durations"] == [{"video": named[5].video, "annotated": 40.0, "found": 32.0}]
    assert summary["zoom"]["num_zoomed"] == 5
    assert summary["mean_cost"]["visual_tokens"] == 64
    # What could not be read is tried again.
    named[4] = dataclasses.replace(named[4], video=samples[4].video)
    (tmp_path / "absent.mp4").write_bytes(Path(samples[4].video).read_bytes())
    named[4] = dataclasses.replace(named[4], video=str(tmp_path / "absent.mp4"))
    again = _run(engine, named, tmp_path / "run")
    assert (again.num_resumed, again.metrics["num_skipped"]) == (5, 0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"] == []


# -- several processes -----------------------------------------------------------------------------------------------


def _launch(count: int, arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """`zoomzero` in `count` processes, as torchrun and `accelerate launch` start them."""
    script = tmp_path / "command.py"
    script.write_text("import sys\nfrom zoomzero.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--"]
    command = [sys.executable, *launcher, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_processes_share_the_questions_and_another_number_of_them_resumes(
    samples: list[Sample], tmp_path: Path
) -> None:
    annotations = str(Path(samples[0].video).parent / "annotations.json")
    options = ["--max-new-tokens", "40", "--batch-size", "2"]
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    done = _launch(2, ["eval", annotations, "--run", str(shared), *options], tmp_path)
    assert done.returncode == 0, done.stderr
    assert main(["eval", annotations, "--run", str(alone), *options]) == 0
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (shared, alone)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["official"] == summaries[1]["official"]
    # One table, from the first process; one file, with every answer once.
    assert done.stdout.count("num_skipped") == 1
    assert sorted(line["index"] for line in _lines(shared)) == [0, 1, 2, 3, 4, 5]
    assert [file.name for file in shared.glob("answers*")] == ["answers.jsonl"]
    assert not list(shared.glob("part.*"))
    # As if two had been killed at work: their answers lie in files of their own, one of them cut.
    lines = (shared / "answers.jsonl").read_bytes().split(b"\n")[:-1]
    (shared / "answers.jsonl").write_bytes(lines[0] + b"\n")
    (shared / "answers.1.jsonl").write_bytes(lines[1] + b"\n" + lines[2][:50])
    (shared / "answers.5.jsonl").write_bytes(lines[3] + b"\n")
    again = _launch(3, ["eval", annotations, "--run", str(shared), *options], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumed: 3 answers were there, 1 cut lines were answered again" in again.stdout
    assert sorted(line["index"] for line in _lines(shared)) == [0, 1, 2, 3, 4, 5]
    assert json.loads((shared / "summary.json").read_text())["metrics"] == summaries[1]["metrics"]


def test_processes_need_a_folder(engine: ZoomZero, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="2 processes need a run_folder to share the questions, got None"):
        evaluate(engine, samples, processes=Processes(0, 2))
