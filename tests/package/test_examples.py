"""Every script of examples/ runs on what the package brings, and says what it should."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from support.places import TESTS

EXAMPLES = sorted((TESTS.parent / "examples").glob("*.py"))
# What each must print; groups are numbers to look at.
SAID = {
    "answer_a_question": r"zoom: looked at .*answer: [A-D] ",
    "evaluate_annotations": r"num_samples +8\.000.*Acc \(coarse pass\).*page: ",
    "loss_in_a_plain_loop": r"even (\S+), others odd (\S+).*step 39: first token even (\S+), others odd (\S+)",
    "shared_prefixes": r"3360 tokens given, 560 computed.*differ by at most (\S+).*differ by at most (\S+) of",
    "train_with_a_recipe": r"step 2: {.rewards/.*model\.safetensors",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    said = re.search(SAID[path.stem], capsys.readouterr().out, re.DOTALL)
    assert said
    if path.stem == "loss_in_a_plain_loop":
        first, rest, trained_first, trained_rest = map(float, said.groups())
        assert trained_first > first + 0.3
        assert trained_rest > rest + 0.2
    if path.stem == "shared_prefixes":
        assert all(float(difference) < 1e-4 for difference in said.groups())


def test_the_pages_name_every_example(checkout: Path) -> None:
    text = (checkout / "docs" / "examples.md").read_text(encoding="utf-8")
    assert {path.name for path in EXAMPLES} == set(re.findall(r"examples/(\w+\.py)", text))
