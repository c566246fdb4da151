"""Answering with the transformers that verl asks for, which is older than the one that training asks for.

.ci/rivals_environment.sh lays it into a folder that only these processes have on their path.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.rival_libraries import import_rival

from zoomzero.synthetic.clips import make_clips

import_rival("verl")

PINS = Path(sys.prefix) / "verl_pins"


def run_with_pins(*arguments: str | Path) -> str:
    """What Python prints with verl's transformers first on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PINS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_pins_are_verls() -> None:
    (wanted,) = [
        requirement
        for requirement in map(Requirement, importlib.metadata.requires("verl") or [])
        if requirement.name == "transformers" and requirement.marker is None
    ]
    found = run_with_pins("-c", "import transformers; print(transformers.__version__)").strip()
    assert found in wanted.specifier
    assert found != importlib.metadata.version("transformers")


def test_the_packaged_checkpoint_answers_as_with_todays(tmp_path: Path) -> None:
    (clip,) = make_clips(tmp_path, 1, seed=3, workers=1)
    question = clip.questions[0]
    command = ["-m", "zoomzero", "answer", clip.path, question.question, "--options", *question.options]
    command += ["--device", "cpu", "--json"]
    pinned = json.loads(run_with_pins(*command))
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    todays = json.loads(done.stdout)
    assert [made["text"] for made in pinned["passes"]] == [made["text"] for made in todays["passes"]]
    assert (pinned["letter"], pinned["spans"]) == (question.answer, todays["spans"])
    assert pinned["confidence"] == pytest.approx(todays["confidence"], abs=1e-5)
