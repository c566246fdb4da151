"""`make gpu-proof` on the CPU: the script that a GPU will run works, stage by stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def prove(checkout: Path, out: Path, stages: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "benchmarks" / "gpu_proof.py"
    environment = {**os.environ, "STAGES": stages, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def rows_of(out: Path, stage: str) -> list[dict[str, Any]]:
    return json.loads((out / f"{stage}.json").read_text(encoding="utf-8"))["rows"]


def test_stages_leave_their_results(checkout: Path, tmp_path: Path) -> None:
    done = prove(checkout, tmp_path, "build,ops,ncu")
    assert done.returncode == 0, done.stderr[-4000:]
    assert {row["measure"] for row in rows_of(tmp_path, "build")} == {"copy", "matmul bfloat16", "matmul float32"}
    rows = rows_of(tmp_path, "ops")
    ours = [row for row in rows if row["candidate"] == "ours"]
    wanted = {"grpo_loss", "selective_logps", "linear_grpo_loss", "linear_selective_logps", "token_resample"}
    assert wanted | {"frame_resample", "token_advantages", "shared_prefix_attention"} <= {
        row["op"].split(",")[0] for row in ours
    }
    assert {"eager", "torch.compile"} <= {row["candidate"] for row in rows}
    assert all(row["share_of_ceiling"] > 0 for row in ours if row["bar"] is not None)
    assert "bar 0.75" in done.stdout
    assert len(rows_of(tmp_path, "ncu")) == 4


def test_a_failed_stage_is_written_down_and_the_next_begins(checkout: Path, tmp_path: Path) -> None:
    done = prove(checkout, tmp_path, "ops sanitizer")
    assert done.returncode == 1
    assert "stage build must have run" in rows_of(tmp_path, "ops")[0]["error"]
    assert rows_of(tmp_path, "sanitizer")[0]["passed"]


def test_an_unknown_stage_is_refused(checkout: Path, tmp_path: Path) -> None:
    done = prove(checkout, tmp_path, "opps")
    assert done.returncode == 1
    assert "STAGES must name some of build, tests, sanitizer, ops, ncu, got opps" in done.stderr


def test_bars_are_compared(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    import gpu_proof

    row = {"op": "o", "size": "s", "bar": 0.5, "share_of_ceiling": 0.49, "synchronisations": 2}
    missed = gpu_proof.bars_missed([row | {"synchronisations_allowed": 1}])
    assert missed == ["o s: 0.49 of the ceiling, bar 0.5", "o s: 2 synchronisations, bar 1"]
    assert not gpu_proof.bars_missed([row | {"bar": 0.4, "synchronisations_allowed": None}])
