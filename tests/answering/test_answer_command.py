"""`zoomzero answer` as a user types it."""

import json
import re
from pathlib import Path

import pytest

from zoomzero.cli import main
from zoomzero.cli.answer import clock
from zoomzero.synthetic import make_clips


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_clips(tmp_path_factory.mktemp("clips"), 1, seed=31)[0].path)


def test_times_are_shown_as_clocks_show_them() -> None:
    assert [clock(seconds) for seconds in (0, 9.96, 75.25, 3599.99, 3661.5)] == [
        "00:00", "00:10", "01:15.2", "1:00:00", "1:01:01.5",
    ]  # fmt: skip


def test_passes_evidence_and_cost_are_shown(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["answer", clip, "Which letter is on the red sign?", "--options", *"ABCD", "--max-new-tokens", "40"]
    assert main([*command, "--strategy", "rounds"]) == 0
    shown = capsys.readouterr()
    assert "built-in one answers; it knows the synthetic clips" in shown.err
    lines = shown.out.splitlines()
    assert lines[0].startswith("read: 64 frames of the whole video")
    assert "coarse pass: 64 frames of 16x16, 32 visual tokens" in lines[1]
    assert any("zoom pass" in line for line in lines)
    assert any(line.startswith("evidence: 00:") for line in lines)
    assert any(line.startswith("answer: (") and "confidence" in line for line in lines)
    assert lines[-1].startswith("cost: ")
    assert "GFLOP" in lines[-1]


def test_several_questions_share_the_video(clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"Which letter is on the {name} sign?", "options": list("ABCD")} for name in ("red", "blue")]
    lines, listed = tmp_path / "q.jsonl", tmp_path / "q.json"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    listed.write_text(json.dumps([*rows, {"question": "What is seen?"}]))
    assert main(["answer", clip, "--questions", str(lines), "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert "question 2, coarse pass" in shown
    assert "Which letter is on the blue sign?" in shown
    assert main(["answer", clip, "--questions", str(listed), "--max-new-tokens", "4", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == 3
    assert answers[2]["letter"] is None
    assert answers[0]["cost"]["visual_tokens"] == 64


def test_templates_and_subtitles_come_from_files(clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, prompts = tmp_path / "said.srt", tmp_path / "prompts.json"
    said.write_text("00:00:01,000 --> 00:00:02,000\nhello\n")
    prompts.write_text(json.dumps({"coarse": "$question $duration $options $video Answer with evidence."}))
    command = ["answer", clip, "Which letter?", "--options", "A", "B", "--max-new-tokens", "2", "--json"]
    assert main([*command, "--subtitles", str(said), "--prompts", str(prompts)]) == 0
    assert json.loads(capsys.readouterr().out)["passes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a question or --questions FILE"),
        (["what?", "--questions", "q.json"], "needs a question or --questions FILE, and not both"),
        (["--questions", "q.json", "--options", "a", "b"], "--options belong to a question on the command line"),
        (["--questions", "absent.json"], "absent.json"),
        (["what?", "--subtitles", "absent.srt"], "absent.srt"),
        (["what?", "--prompts", "absent.json"], "absent.json"),
        (["what?", "--options", "a"], "options must be 2 to 8 texts, got 1"),
        (["what?", "--max-rounds", "-1"], "max_rounds must be at least 0, got -1"),
        ([" "], "question must not be empty"),
        (["x" * 10_001], "must have at most 10000 characters, got 10001"),
        (["what?", "--options", "a", "b" * 10_001], "must have at most 10000 characters, got 10001"),
        (["what?", "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1"], "a server needs the model's name"),
        (["what?", "--engine", "openai", "--model", "tiny"], "needs base_url"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    clip: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["answer", clip, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "built-in" not in error


@pytest.mark.parametrize("command", [["answer", "no.mp4", "what?"], ["eval", "no.json"]])
def test_a_misspelt_strategy_is_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--strategy", "corse"])
    assert "invalid choice: 'corse' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "Größe 漢字?"}\n{"question": "b",}', "line 2 is not"),
        (
            '[{"question": "a"}, {"question": "b", "options": ["x"]}]',
            "q.json: question 2: options must be 2 to 8 texts",
        ),
        ('[{"question": "a"}, {"question": " "}]', "q.json: question 2: question must not be empty"),
        ("[]", "must hold 1 to 1000 questions, got 0"),
        ("{not json", "must be a JSON list, or lines of JSON objects"),
        ("[[1]]", "question 1 must be an object"),
        ('[{"question": 7}]', "question 1 must be an object with a text"),
        ('{"question": "a"}\n{"question": "b", "options": "x"}', '"options" of question 2 must be a list of texts'),
        ("[" * 200_000, "must be a JSON list"),
        (" " * (1 << 21), "at most 1048576 bytes"),
    ],
)
def test_bad_files_of_questions_are_refused(
    clip: str, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.json"
    file.write_text(content)
    assert main(["answer", clip, "--questions", str(file)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rubbish", "device must be one of torch's, got 'rubbish'; write cpu or cuda"),
        ("cuda:99", "device must be one of this machine's [0-9]+ GPUs or the cpu, got 'cuda:99'"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    clip: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["answer", clip, "what?", "--device", name]) == 1
    assert re.search(message, capsys.readouterr().err)
