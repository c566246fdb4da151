"""The command line as a user types it, in a process of its own where that matters."""

import dataclasses
import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zoomzero
from zoomzero.cli import COMMANDS, _parser, main
from zoomzero.cli.fields import field_values
from zoomzero.demo import DemoOptions
from zoomzero.synthetic import make_clips
from zoomzero.training.checkpoints import newest_checkpoint
from zoomzero.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 2, seed=31)
    return folder


def _clip(folder: Path) -> str:
    return str(next(folder.glob("*.mp4")))


def test_answer_prints_both_passes_and_the_evidence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["answer", _clip(folder), "Which letter is on the red sign?", "--options", *"ABCD"])
    output = capsys.readouterr().out
    assert status == 0
    assert "64 frames of 16x16, 32 visual tokens" in output
    assert "zoom pass" in output
    assert "evidence: " in output
    assert "answer: (" in output


def test_answer_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["answer", _clip(folder), "Which letter is on the blue sign?", "--options", *"ABCD", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["letter"] in "ABCD"
    assert [look["name"] for look in answer["passes"]] == ["coarse", "zoom"]


def test_eval_prints_and_writes_figures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "figures.json"
    annotations = str(folder / "annotations.json")
    run = tmp_path / "run"
    command = ["eval", annotations, "--max-new-tokens", "40", "--out", str(out), "--run", str(run)]
    assert main(command) == 0
    assert "mIoU" in capsys.readouterr().out
    assert json.loads(out.read_text())["metrics"]["num_samples"] == 4
    assert len((run / "answers.jsonl").read_text().splitlines()) == 4
    assert not (run / "skipped.jsonl").exists()
    assert json.loads((run / "summary.json").read_text())["metrics"]["num_samples"] == 4
    # Once more: nothing is answered again.
    assert main(command) == 0
    assert "resumed: 4 answers were there, 0 cut lines were answered again" in capsys.readouterr().out
    assert len((run / "answers.jsonl").read_text().splitlines()) == 4


def test_eval_counts_a_benchmark_and_its_videos_before_any_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    command = ["eval", "--benchmark", "nextgqa", "--root", str(copy), "--check", "--model", "no such model"]
    assert main(command) == 0
    assert re.search(r"questions +4\n.*videos found +2\nvideos missing +0\n", capsys.readouterr().out, re.DOTALL)
    Path(_clip(copy)).unlink()
    assert main(command) == 1
    output = capsys.readouterr().out
    assert re.search(r"videos found +1\nvideos missing +1\nmissing: .*\.mp4\n", output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0", "--check"], "--limit must be at least 1, got 0"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--num-decoders", "0"], "num_decoders must be at least 1, got 0"),
        (["--max-skipped-fraction", "2"], "max_skipped_fraction must be in [0, 1], got 2"),
        (["--prompts", "absent.json"], "absent.json: no such file or directory"),
    ],
)
def test_eval_tells_mistakes_before_a_model_is_loaded(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(folder / "annotations.json"), "--model", "no such model", *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "no such model" not in error


def test_eval_wants_a_folder_for_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(folder / "annotations.json")
    assert main(["eval", file, "--run", file]) == 1
    assert f"{file}: a run needs a folder, got a file" in capsys.readouterr().err


def test_eval_lists_rows_that_break_a_rule_and_stops_above_the_limit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((folder / "annotations.json").read_text())
    rows[1]["answer"] = "\ud800"
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    command = ["eval", str(file), "--video-root", str(folder), "--check"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "left out: " in error
    assert "row 1: 'answer' must be the letter of one of the 4 options or its text, got '\\ud800'" in error
    assert "(1 of 4 rows break a rule, more than max_bad_fraction=0.01 allows)" in error
    assert main([*command, "--max-bad-fraction", "0.5"]) == 0
    captured = capsys.readouterr()
    assert "left out: " in captured.err
    assert re.search(r"questions +3\n", captured.out)
    assert main([*command, "--max-bad-fraction", "0.5", "--strict"]) == 1
    capsys.readouterr()


def test_eval_writes_the_submission_of_rextime(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((folder / "annotations.json").read_text())
    release = [
        {
            "qid": f"q{i}",
            "vid": row["video"].removesuffix(".mp4"),
            "options": row["options"],
            "question": row["question"],
        }
        for i, row in enumerate(rows)
    ]
    (tmp_path / "rextime_test_release.json").write_text(json.dumps(release))
    command = ["eval", "--benchmark", "rextime", "--root", str(tmp_path), "--video-root", str(folder)]
    assert main([*command, "--run", str(tmp_path / "run"), "--max-new-tokens", "40"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "submission.jsonl").read_text().splitlines()]
    assert [line["qid"] for line in lines] == ["q0", "q1", "q2", "q3"]
    assert all(set(line) == {"qid", "pred_relevant_windows", "ans"} for line in lines)
    # The truth is secret: questions are counted and nothing is measured.
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"] == {
        "num_samples": 4,
        "num_skipped": 0,
    }
    assert "submission" in capsys.readouterr().err


def test_eval_skips_unreadable_videos_and_stops_above_the_limit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    Path(_clip(copy)).write_text("not a video")
    run = tmp_path / "run"
    command = ["eval", str(copy / "annotations.json"), "--max-new-tokens", "2", "--run", str(run)]
    assert main([*command, "--time-limit", "0"]) == 1
    assert "more than max_skipped_fraction=0.05 allows; see" in capsys.readouterr().err
    assert main([*command, "--max-skipped-fraction", "0.5"]) == 0
    assert re.search(r"num_skipped +2\.000", capsys.readouterr().out)
    assert len((run / "skipped.jsonl").read_text().splitlines()) >= 3


def test_train_writes_a_checkpoint_that_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trained"
    command = ["train", str(folder / "annotations.json"), "--out", str(out), "--steps", "2", "--prompts", "2"]
    assert main([*command, "--rollouts", "2", "--max-new-tokens", "40"]) == 0
    capsys.readouterr()
    assert main(["answer", _clip(folder), "Which letter?", "--options", *"ABCD", "--model", str(out)]) == 0
    assert "answer: " in capsys.readouterr().out


def test_train_stops_at_unreadable_videos_and_keeps_the_steps_it_took(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "trained"
    shutil.copytree(folder, copy)
    Path(_clip(copy)).unlink()
    command = ["train", str(copy / "annotations.json"), "--out", str(out), "--steps", "8", "--prompts", "1"]
    command += ["--rollouts", "2", "--max-new-tokens", "4", "--time-limit", "60", "--max-skipped-fraction", "0.3"]
    assert main(command) == 1
    assert "no such file; 2 of 4 samples have no readable video" in capsys.readouterr().err
    assert len((out / "skipped.jsonl").read_text().splitlines()) == 2
    assert not (out / "model.safetensors").exists()
    question = ["answer", str(next(copy.glob("*.mp4"))), "Which letter?", "--options", *"ABCD"]
    assert main([*question, "--model", str(out / "stopped")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["answer", "absent.mp4", "what?", "--options", "a", "b"], "absent.mp4"),
        (["eval", "absent.json"], "absent.json"),
        (["eval"], "needs an annotation file, or --benchmark NAME --root DIR, got neither"),
        (["eval", "--benchmark", "nextgqa"], "--benchmark needs --root DIR and no annotation file"),
        (["eval", "--benchmark", "lvbench", "--root", "absent"], "get it from https://"),
        (["eval", "--benchmark", "x", "--root", "absent"], "name must be one of nextgqa, rextime,"),
        (["report", "absent"], "`zoomzero train` or `zoomzero demo` first"),
        (["bench", "--compare", "absent.json"], "absent.json"),
        (["demo", "--steps", "0"], "steps must be at least 1, got 0"),
    ],
)
def test_errors_are_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bad_question_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["answer", _clip(folder), "what?", "--options", "only"]) == 1
    assert "options must be 2 to 8 texts, got 1" in capsys.readouterr().err


def test_help_is_fast_because_nothing_heavy_is_imported() -> None:
    code = "import sys, zoomzero.cli; zoomzero.cli._parser(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"zoomzero {importlib.metadata.version('zoomzero')}"
    assert zoomzero.__version__ == importlib.metadata.version("zoomzero")


def test_every_command_file_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +\w", shown, re.M), name


def test_train_options_are_the_settings_fields() -> None:
    """Every field is an option under its name or its short one, and what is typed arrives in the field."""
    typed = ["--rollouts", "4", "--max-new-tokens", "40", "--normalize", "tokens", "--no-zoom-reward"]
    typed += ["--train-vision", "--time-limit", "0", "--zoom-scorer", "policy", "--online-filter"]
    options = _parser().parse_args(["train", "file.json", "--out", "o", *typed])
    changed = {
        "num_generations": 4, "max_completion_length": 40, "advantage_normalize": "tokens", "zoom_reward": False,
        "freeze_vision": False, "video_time_limit": None, "zoom_scorer": "policy", "online_filter": True,
    }  # fmt: skip
    expected = {**dataclasses.asdict(TrainingSettings()), **changed}
    assert field_values(options, TrainingSettings) == expected


def test_defaults_stand_once() -> None:
    """What the command line fills in is what the configuration would have had."""
    options = _parser().parse_args(["train", "file.json", "--out", "o"])
    assert field_values(options, TrainingSettings) == dataclasses.asdict(TrainingSettings())
    assert TrainingSettings().advantage_normalize == "segments"
    demo = _parser().parse_args(["demo"])
    assert DemoOptions(**field_values(demo, DemoOptions)) == DemoOptions()


def test_help_of_normalize_names_every_choice() -> None:
    from zoomzero_kernels.token_advantages import NORMALIZATIONS

    (field,) = [field for field in dataclasses.fields(TrainingSettings) if field.name == "advantage_normalize"]
    assert all(name in field.metadata["help"] for name in NORMALIZATIONS)


def test_train_with_too_few_questions_says_both_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trained"
    assert (
        main(["train", str(folder / "annotations.json"), "--out", str(out), "--prompts", "9", "--rollouts", "2"]) == 1
    )
    assert "a step needs 9 rows, one per group, got 4" in capsys.readouterr().err
    assert not (out / "model.safetensors").exists()


def test_train_keeps_its_steps_when_a_scheduler_ends_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    start = "import sys; from zoomzero.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "train", str(folder / "annotations.json"), "--out", str(out)]
    command += ["--prompts", "2", "--rollouts", "2", "--max-new-tokens", "8", "--steps", "5000", "--save-every", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "checkpoint-2").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert re.search(r"stopped after \d+ steps, (kept in|which) ", error)
    assert "Traceback" not in error
    steps = newest_checkpoint(out).num_steps
    assert steps >= 2
    assert main([*command[3:], "--resume", "--steps", str(steps + 1)]) == 0
    assert (out / "model.safetensors").exists()
    assert main([*command[3:], "--steps", "1"]) == 1
