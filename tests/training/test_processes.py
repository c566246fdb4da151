"""Two processes over gloo take the same steps as one: gradients, figures, skipped videos, checkpoints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.places import SUPPORT
from support.zoom_clips import clip_rows

from zoomzero.synthetic import tiny_model, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer
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
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
CASES: dict[str, dict[str, Any]] = {
    "trained tower": {"loss_type": "dapo", "freeze_vision": False},
    "no group in one process": {"loss_type": "dapo", "unreadable": [2, 3]},
    "unequal shares, grpo": {"loss_type": "grpo", "unreadable": [3]},
    "unequal shares, dr_grpo": {"loss_type": "dr_grpo", "unreadable": [2]},
    "an empty step, bnpo": {"loss_type": "bnpo", "unreadable": [3, 4, 5, 6, 7], "online_filter": True},
    "accumulation": {
        "loss_type": "dapo", "unreadable": [2], "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
    },
    "sharded": {"loss_type": "dapo", "fsdp": True},
    "sharded, trained tower": {
        "loss_type": "dapo", "fsdp": True, "freeze_vision": False, "gradient_checkpointing": True,
    },
    "sharded, no group in one process": {
        "loss_type": "dapo", "fsdp": True, "freeze_vision": False, "unreadable": [2, 3],
    },
    "sharded, an empty step": {"loss_type": "bnpo", "fsdp": True, "unreadable": [3, 4, 5, 6, 7]},
    "sharded, accumulation": {
        "loss_type": "dapo", "fsdp": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
    },
    "sharded, bfloat16": {"loss_type": "dapo", "fsdp": True, "bf16": True},
    "adapters": {"loss_type": "dapo", "lora": LORA, "unreadable": [3]},
    "sharded adapters": {"loss_type": "dapo", "lora": LORA, "fsdp": True, "unreadable": [2, 3]},
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
    sharded = {"sharded whole": {**whole, "fsdp": True}}
    sharded["sharded again"] = {**again, "fsdp": True, "resume": str(two / "run-sharded whole" / "checkpoint-2")}
    results = _steps(two, {**runs, "whole": whole, "again": again, **sharded}, processes=2)
    # One process goes on from what two left, sharded or not.
    runs |= {f"alone {name}": run for name, run in (("again", again), ("sharded again", sharded["sharded again"]))}
    for run in runs.values():
        run["per_device_train_batch_size"] *= 2
        run.pop("fsdp", None)
    return two, results, one, _steps(one, runs, processes=1)


Shared = tuple[Path, Results, Path, Results]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(shared: Shared, case: str) -> None:
    two, results, one, expected = shared
    ours, theirs = results[case], expected[case]
    assert bool(ours["sharded"]) is ("fsdp" in CASES[case])
    if "fsdp" in CASES[case]:
        assert set(ours["sharded"]) == set(ours["weights"])
    assert set(ours["gradients"]) == set(theirs["gradients"])
    # Eight bits of weights that are gathered in bfloat16 here and cast by autocast there.
    exact = 3e-2 if "bf16" in CASES[case] else 1e-5
    for name, gradient in theirs["gradients"].items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        assert ours["gradients"][name].dtype == gradient.dtype == torch.float32
        torch.testing.assert_close(ours["gradients"][name], gradient, rtol=0, atol=exact * scale, msg=name)
    for found, wanted in zip(ours["logs"], theirs["logs"], strict=True):
        names = {name for name in wanted if not name.startswith("seconds") and not name.endswith("_time")}
        # Each process scores its own zoom prompts.
        names -= {"zoom_prompts"}
        if "gradient_accumulation_steps" in CASES[case]:
            # TRL takes means over micro-batches, which hold other groups.
            names -= {"kl", "entropy", "clip_ratio/region_mean"}
        for name in names:
            assert found[name] == pytest.approx(wanted[name], rel=20 * exact, abs=2 * exact), name
    if CASES[case].get("unreadable"):
        lines = [(folder / f"run-{case}" / "skipped.jsonl").read_text().splitlines() for folder in (two, one)]
        assert sorted(lines[0]) == sorted(lines[1])
        assert len(lines[0]) == len(CASES[case]["unreadable"])


@pytest.mark.parametrize("kind", ["", "sharded "])
def test_two_processes_go_on_from_a_checkpoint(shared: Shared, kind: str) -> None:
    two, results, *_ = shared
    run = two / f"run-{kind}whole"
    assert newest_checkpoint(run).num_steps == 4
    assert {path.name for path in run.glob("checkpoint-2/rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert not list(run.glob("checkpoint-2/*.bin"))
    for name, weight in results[f"{kind}whole"]["weights"].items():
        assert torch.equal(results[f"{kind}again"]["weights"][name], weight), name
    assert [entry["num_skipped"] for entry in results[f"{kind}again"]["logs"]] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["", "sharded "])
def test_one_process_goes_on_from_what_two_left(shared: Shared, kind: str) -> None:
    _, results, _, alone = shared
    found = alone[f"alone {kind}again"]
    losses = [[entry["loss"] for entry in run["logs"]] for run in (found, results["whole"])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)
    for name, weight in results["whole"]["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_plan_that_would_be_left_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with FSDP in the environment of the launch: accelerate trains it without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config = ZoomZeroConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], num_generations=4)
    rows = clip_rows(tmp_path)
    processor = tiny_processor()
    with pytest.raises(ValueError, match=r"shares weights among several processes, got 1 of accelerate's kind NO"):
        ZoomZeroTrainer(tiny_model(processor.tokenizer), config, rows, processing_class=processor)


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    """Two processes without a launcher that would watch over them; one is killed in the middle of the run."""
    clip_rows(tmp_path, 4)
    run = {
        "clips": str(tmp_path), "unreadable": [], "max_steps": 10_000, "per_device_train_batch_size": 8, "fsdp": True,
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "result": str(tmp_path / "result"),
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        subprocess.Popen(
            [sys.executable, str(SCRIPT), json.dumps([run])],
            env={**os.environ, **launch, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    )
    try:
        while newest_checkpoint(tmp_path / "run").num_steps == 0:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.05)
        second.kill()
        _, error = first.communicate(timeout=120)
    finally:
        first.kill()
        second.kill()
    assert first.returncode not in (0, -signal.SIGKILL)
    assert "onnection" in error, error[-2000:]
    assert newest_checkpoint(tmp_path / "run").num_steps >= 1
