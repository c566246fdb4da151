"""The Python of docs/answering.md runs as it stands, in order, on a real clip."""

from pathlib import Path
from typing import Any

import pytest
from support.documentation import python_blocks

from zoomzero.answering.strategies import STRATEGIES
from zoomzero.synthetic import make_clips


def test_the_pages_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], checkout: Path) -> None:
    names: dict[str, Any] = {"video": make_clips(tmp_path, 1, seed=37)[0].path}
    for block in python_blocks("answering.md"):
        exec(compile(block, "docs/answering.md", "exec"), names)
    assert names["answer"].letter in "ABCD"
    assert len(names["answers"]) == 2
    assert names["open_answer"].letter is None
    assert names["other"].processor.settings.prompts == names["prompts"]
    assert "coarse the whole video first" in capsys.readouterr().out
    page = (checkout / "docs" / "answering.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in STRATEGIES)
