"""zoomzero train, killed by SIGKILL again and again and resumed, ends as if nothing had happened.

ZOOMZERO_TEST_SEED repeats the moments of a run, which every run prints; ZOOMZERO_KILLS is how many there are.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zoomzero.annotations import load_annotations
from zoomzero.synthetic import make_clips

STEPS = 6
KILLS = int(os.environ.get("ZOOMZERO_KILLS", "2"))
# Two processes take half a minute to start, kill after kill.
MANY = pytest.mark.skipif("ZOOMZERO_KILLS" not in os.environ, reason="minutes per kill: set ZOOMZERO_KILLS")
START = "import sys; from zoomzero.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven questions, one of them on a video that is gone."""
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 4, seed=17)
    file = folder / "annotations.json"
    rows = json.loads(file.read_text(encoding="utf-8"))[:7]
    gone = folder / "gone.mp4"
    shutil.copy(load_annotations(file)[4].video, gone)
    gone.unlink()
    rows[4]["video"] = gone.name
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def _started(annotations: Path, out: Path, processes: int) -> subprocess.Popen[str]:
    """A run in a session of its own, so that a kill takes all of its processes."""
    command = [sys.executable, "-c", START, "train", str(annotations), "--out", str(out), "--resume"]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
        command = [sys.executable, *launch, *command]
    command += ["--steps", str(STEPS), "--prompts", "3", "--rollouts", "2", "--max-new-tokens", "24", "--seed", "3"]
    command += ["--learning-rate", "1e-3", "--save-every", "1", "--keep-last", "0", "--max-skipped-fraction", "0.5"]
    command += ["--time-limit", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _finished(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]


def _wait_for_save(process: subprocess.Popen[str], out: Path) -> None:
    while process.poll() is None and not (out / ".saving").exists():
        time.sleep(0.0005)


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _losses(out: Path) -> list[float]:
    state = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "miou" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=MANY)])
def test_kill_9_at_random_moments(annotations: Path, tmp_path: Path, processes: int) -> None:
    seed = int(os.environ.get("ZOOMZERO_TEST_SEED", random.randrange(10**6)))
    print(f"ZOOMZERO_TEST_SEED={seed}")
    moments = random.Random(seed)
    whole, out = tmp_path / "whole", tmp_path / "out"
    begun = time.monotonic()
    first = _started(annotations, whole, processes)
    _wait_for_save(first, whole)
    seconds_to_save = time.monotonic() - begun
    _finished(first)

    # A quarter of the kills inside a save.
    inside = set(moments.sample(range(KILLS), max(1, KILLS // 4)))
    found: dict[str, int] = {"in a save": 0, "elsewhere": 0}
    kill, delay = 0, 0.02
    while kill < KILLS:
        process = _started(annotations, out, processes)
        if kill in inside:
            _wait_for_save(process, out)
            time.sleep(moments.random() * delay)
        else:
            time.sleep(moments.random() * 1.3 * seconds_to_save)
        if process.poll() is not None:
            # The run was over before its moment came: to be killed once more, it loses its last checkpoints.
            _finished(process)
            for folder in out.glob("checkpoint-*"):
                if int(folder.name.rpartition("-")[2]) > 1:
                    shutil.rmtree(folder)
            (out / "model.safetensors").unlink()
            continue
        _kill(process)
        saving = (out / ".saving").exists()
        found["in a save" if saving else "elsewhere"] += 1
        # A save that was over before the kill: nearer to its beginning the next time.
        delay = delay if saving else delay / 2
        kill += int(saving or kill not in inside)
    print(found)
    assert found["in a save"] >= len(inside)
    _finished(_started(annotations, out, processes))

    assert _losses(out) == _losses(whole)
    assert len(set(_losses(whole))) == STEPS
    trained: dict[str, Any] = load_file(out / "model.safetensors")
    for name, weight in load_file(whole / "model.safetensors").items():
        assert torch.equal(weight, trained[name]), name
    assert (out / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()
