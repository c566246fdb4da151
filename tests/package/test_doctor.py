"""`zoomzero doctor`: facts of this machine, and what it says of machines where something is missing."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from zoomzero import installation
from zoomzero.cli import main
from zoomzero.installation import ABSENT, GOOD, WRONG


def test_doctor_says_that_the_main_job_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {(fact["part"], fact["name"]): fact for fact in told["facts"]}
    assert told["works"]
    assert found["package", "torch"]["found"].startswith(importlib.metadata.version("torch"))
    assert found["codec", "H.264"]["found"].startswith("read by pyav")
    assert "native CPU loop" in found["op", "grpo_loss"]["found"]
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for fact in told["facts"]:
        assert fact["name"] in shown
    assert shown.rstrip().endswith("Works: questions about videos are answered.")


def test_every_registered_op_is_named() -> None:
    import torch

    import zoomzero_kernels

    named = {fact.name for fact in installation.facts() if fact.part == "op"}
    public = {
        name for name in zoomzero_kernels.__all__ if hasattr(torch.ops.zoomzero, name) or name.endswith("grpo_loss")
    }
    assert public
    assert public <= named


@pytest.mark.parametrize(
    ("missing", "state", "remedy"),
    [
        ("av", WRONG, 'pip install "zoomzero[answer]"'),
        ("trl", ABSENT, 'pip install "zoomzero[train]"'),
        ("nvidia-dali-cuda130", ABSENT, 'pip install "zoomzero[gpu]"'),
        ("vllm", ABSENT, "pip install vllm"),
    ],
)
def test_a_missing_package_has_its_remedy(
    missing: str, state: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = installation._version
    absent = {missing, *installation.OTHER_NAMES.get(missing, ())}
    monkeypatch.setattr(installation, "_version", lambda name: None if name in absent else real(name))
    monkeypatch.setattr(installation, "CODECS", ())
    fact = next(fact for fact in installation.facts() if fact.name == missing)
    assert (fact.state, fact.remedy) == (state, remedy)
    assert main(["doctor"]) == (1 if state == WRONG else 0)
    assert remedy in capsys.readouterr().out


def test_a_release_outside_the_ranges_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = installation._version
    monkeypatch.setattr(installation, "_version", lambda name: "0.9" if name in ("av", "trl") else real(name))
    found = {fact.name: fact for fact in installation._packages()}
    assert found["av"].state == WRONG
    assert "outside >=" in found["av"].found
    assert found["trl"].state == ABSENT
    assert found["trl"].remedy.endswith("for the train extra")
    assert found["torch"].state == GOOD


def test_a_codec_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = installation._trial_file
    monkeypatch.setattr(installation, "_trial_file", lambda encoder: (made(encoder) or b"")[:400])
    monkeypatch.setattr(installation, "CODECS", installation.CODECS[:2])
    h264, hevc = installation._codecs()
    assert (h264.state, h264.found) == (WRONG, "not read")
    assert hevc.state == ABSENT


def test_broken_kernels_are_told_with_the_remedy(tmp_path) -> None:
    """In a process of its own, where the native module cannot be loaded."""
    (tmp_path / "broken.py").write_text(
        "import sys\n"
        "sys.modules['zoomzero_kernels'] = None\n"
        "from zoomzero.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "broken.py")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "broken" in done.stdout
    assert "pip install --force-reinstall" in done.stdout
    assert "Does not work: zoomzero_kernels" in done.stdout
