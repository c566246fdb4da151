"""Every block of code on the pages runs, here or in the page's own test, or says why it cannot."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.places import TESTS

from zoomzero.cli import main
from zoomzero.synthetic import make_clips, tiny_checkpoint

CHECKOUT = TESTS.parent
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: \S.{15,} -->")
# Pages whose Python the named test runs, block by block; `python_block` and `python_blocks` find them there.
RUN_BY = {
    "docs/answering.md": "tests/answering/test_documentation.py",
    "docs/drop_in.md": "tests/integrations/test_drop_in.py",
    "docs/shared_prefixes.md": "tests/integrations/test_shared_prefixes_page.py",
}
CODE = ("python", "sh")


def _name(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        where = f"{_name(page)}: {block['code'].splitlines()[0]!r}"
        assert block["language"] in (*CODE, "text", "json", "yaml"), f"{where} must name its language"
        if block["language"] not in CODE or NOT_RUN.fullmatch(block["before"].strip()):
            continue
        if block["language"] == "python" and _name(page) in RUN_BY:
            assert page.name in (CHECKOUT / RUN_BY[_name(page)]).read_text(encoding="utf-8")
        else:
            assert page.name == "README.md", f"{where} must be run by a test, or say why not: <!-- not run: why -->"


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's blocks find what they name."""
    make_clips(tmp_path, 1, seed=61)
    clip = next(tmp_path.glob("*.mp4"))
    (tmp_path / "rows.json").write_text((tmp_path / "annotations.json").read_text())
    (tmp_path / "DIR").mkdir()
    shutil.copy(tmp_path / "annotations.json", tmp_path / "DIR")
    shutil.copy(clip, tmp_path / "DIR")
    for name in ("clip.mp4", "film.mp4"):
        shutil.copy(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _blocks(language: str) -> list[str]:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    return [
        block["code"].replace("path/to/Qwen2.5-VL-checkpoint", str(tiny_checkpoint()))
        for block in BLOCK.finditer(text)
        if block["language"] == language and not NOT_RUN.fullmatch(block["before"].strip())
    ]


def test_the_readmes_commands_run(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in _blocks("sh") for line in block.splitlines() if line]
    assert commands
    for line in commands:
        words = shlex.split(line, comments=True)
        assert words[0] == "zoomzero"
        # The page's M is a checkpoint; a step's eight prompts are more than the clip's two questions.
        arguments = [str(tiny_checkpoint()) if word == "M" else word for word in words[1:]]
        if arguments[0] == "train":
            arguments += ["--prompts", "2", "--rollouts", "2", "--max-new-tokens", "20"]
        assert main(arguments) == 0, line
    assert (readme / "trained" / "model.safetensors").exists()
    assert json.loads((readme / "runs" / "eval" / "summary.json").read_text())["metrics"]["num_samples"] == 2


def test_the_readmes_python_runs(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    answering, training = _blocks("python")
    exec(compile(answering, "README.md", "exec"), {})
    assert capsys.readouterr().out
    # The tensors that the second block takes from its reader's trainer.
    batch, tokens, width, words = 4, 6, 8, 32
    names = {
        "rewards": torch.rand(batch, 2),
        "segments": torch.randint(0, 2, (batch, tokens), dtype=torch.uint8),
        "mask": torch.ones(batch, tokens, dtype=torch.bool),
        "group_ids": torch.tensor([0, 0, 1, 1]),
        "hidden": torch.randn(batch, tokens, width, requires_grad=True),
        "weight": torch.randn(words, width, requires_grad=True),
        "token_ids": torch.randint(0, words, (batch, tokens)),
        "old_logps": None,
    }
    exec(compile(training, "README.md", "exec"), names)
    assert names["hidden"].grad.isfinite().all()
    assert names["advantages"].shape == (batch, tokens)
