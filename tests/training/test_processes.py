"""Two processes over gloo take the same steps as one: gradients, figures, skipped videos, checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.places import SUPPORT
from support.zoom_clips import clip_rows

from zoomzero.training.checkpoints import newest_checkpoint

SCRIPT = SUPPORT / "shared_steps.py"


def _steps(folder: Path, runs: dict[str, dict[str, Any]], *, processes: int) -> dict[str, dict[str, Any]]:
    """What the first process saw of each run, one launch for all of them."""
    settings = [
        {"result": str(folder / name), "output_dir": str(folder / f"run-{name}"), **run} for name, run in runs.items()
    ]
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), json.dumps(settings)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: torch.load(folder / name) for name in runs}


# The unreadable ones: none; all of the second process's first step, so that it has no group; one of it; both processes'
# in the second step, so that the step is empty. Losses that take means must not weigh unequal shares alike.
CASES: dict[str, dict[str, Any]] = {
    "trained tower": {"loss_type": "dapo", "freeze_vision": False},
    "no group in one process": {"loss_type": "dapo", "unreadable": [2, 3]},
    "unequal shares, grpo": {"loss_type": "grpo", "unreadable": [3]},
    "unequal shares, dr_grpo": {"loss_type": "dr_grpo", "unreadable": [2]},
    "an empty step, bnpo": {"loss_type": "bnpo", "unreadable": [3, 4, 5, 6, 7], "online_filter": True},
    "accumulation": {
        "loss_type": "dapo", "unreadable": [2], "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
    },
}  # fmt: skip
RESUMED = {
    "per_device_train_batch_size": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "max_steps": 4,
    "unreadable": [1],
}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Path, Results]:
    """Folder and results of all cases by two processes, and by one."""
    clips = tmp_path_factory.mktemp("clips")
    clip_rows(clips, 4)
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    common = {"clips": str(clips), "unreadable": [], "max_steps": 2, "per_device_train_batch_size": 8}
    runs = {name: {**common, **case} for name, case in CASES.items()}
    whole = {**common, **RESUMED}
    again = {**whole, "resume": str(two / "run-whole" / "checkpoint-2")}
    results = _steps(two, {**runs, "whole": whole, "again": again}, processes=2)
    for run in runs.values():
        run["per_device_train_batch_size"] *= 2
    return two, results, one, _steps(one, runs, processes=1)


Shared = tuple[Path, Results, Path, Results]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(shared: Shared, case: str) -> None:
    two, results, one, expected = shared
    ours, theirs = results[case], expected[case]
    assert set(ours["gradients"]) == set(theirs["gradients"])
    for name, gradient in theirs["gradients"].items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours["gradients"][name], gradient, rtol=0, atol=1e-5 * scale, msg=name)
    for found, wanted in zip(ours["logs"], theirs["logs"], strict=True):
        names = {name for name in wanted if not name.startswith("seconds") and not name.endswith("_time")}
        # Each process scores its own zoom prompts.
        names -= {"zoom_prompts"}
        if "gradient_accumulation_steps" in CASES[case]:
            # TRL takes means over micro-batches, which hold other groups.
            names -= {"kl", "entropy", "clip_ratio/region_mean"}
        for name in names:
            assert found[name] == pytest.approx(wanted[name], rel=2e-4, abs=2e-5), name
    if CASES[case].get("unreadable"):
        lines = [(folder / f"run-{case}" / "skipped.jsonl").read_text().splitlines() for folder in (two, one)]
        assert sorted(lines[0]) == sorted(lines[1])
        assert len(lines[0]) == len(CASES[case]["unreadable"])


def test_two_processes_go_on_from_a_checkpoint(shared: Shared, tmp_path: Path) -> None:
    two, results, *_ = shared
    run = two / "run-whole"
    assert newest_checkpoint(run).num_steps == 4
    assert {path.name for path in run.glob("checkpoint-2/rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    for name, weight in results["whole"]["weights"].items():
        assert torch.equal(results["again"]["weights"][name], weight), name
    assert [entry["num_skipped"] for entry in results["again"]["logs"]] == [1, 1, 1, 1]
