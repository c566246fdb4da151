"""A checkpoint's facts are told before its weights are loaded, and what is wrong comes with its remedy."""

import json
import shutil
from pathlib import Path

import pytest
from support.small_families import FAMILY_NAMES, save_small_checkpoint

from zoomzero.cli import doctor_model, main
from zoomzero.models.checkup import examine
from zoomzero.synthetic import tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def _change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_right_checkpoint_is_right_in_all(name: str, tmp_path: Path) -> None:
    found = {finding.what: finding for finding in examine(save_small_checkpoint(name, tmp_path))}
    assert list(found) == ["family", "special tokens", "chat template", "end tokens", "positions", "memory"]
    assert all(finding.is_right for finding in found.values())
    assert found["family"].found.startswith(name)
    assert found["end tokens"].found == "2 <|im_end|>"
    # 32 steps of one token: start token, steps, end token; 2 positions per second; 3 positions per labelled frame.
    starts = {"qwen2_vl": 33, "qwen2_5_vl": 64, "qwen3_vl": 95}
    assert f"starts at {starts[name]}" in found["positions"].found


def test_memory_is_counted_without_loading(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    memory = {finding.what: finding.found for finding in examine(folder)}["memory"]
    assert memory.startswith("0.5 M parameters; weights 0.00 GiB in bfloat16")


def test_what_is_wrong_is_told(folder: Path, tmp_path: Path) -> None:
    _change_json(folder / "config.json", video_token_id=6)
    wrong = [finding for finding in examine(folder) if not finding.is_right]
    assert [finding.what for finding in wrong] == ["special tokens"]
    assert "<|video_pad|> must be token 6 as the config says, got 5; use the tokenizer files" in wrong[0].found
    (folder / "chat_template.jinja").write_text("{{ 'text only' }}")
    *_, last = examine(folder)
    assert (last.what, last.is_right) == ("tokenizer", False)
    assert "must give one <|video_pad|> for a video part, got 0" in last.found
    _change_json(folder / "config.json", model_type="qwen2")
    (only,) = examine(folder)
    assert "must be of a family among" in only.found
    (only,) = examine(tmp_path / "nothing")
    assert not only.is_right


def _answers_line(shown: str) -> str:
    return next(line for line in shown.splitlines() if line[2:].startswith("answers "))


def test_doctor_compares_answers_with_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", str(tiny_checkpoint())]) == 0
    answers = _answers_line(capsys.readouterr().out)
    assert answers.startswith("  answers                 8 greedy responses (")
    assert "equal those of transformers' own forward" in answers


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_family_answers_as_in_transformers(name: str, tmp_path: Path) -> None:
    *_, last = doctor_model.check_model(save_small_checkpoint(name, tmp_path))
    assert (last.what, last.is_right) == ("answers", True), last.found


def test_doctor_tells_answers_that_differ(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log-probability that is off by more than rounding explains."""
    real = doctor_model._own_logps
    monkeypatch.setattr(doctor_model, "_own_logps", lambda *a: real(*a) - 0.01)
    assert main(["doctor", "--model", str(folder)]) == 1
    answers = _answers_line(capsys.readouterr().out)
    assert answers.startswith("! answers                 response 1 must be that of transformers' own forward")
