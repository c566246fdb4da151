"""`zoomzero bench`: from the package alone, agreement before times, JSON, comparison with an earlier run."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from zoomzero.bench import measure
from zoomzero.bench.case import Case, Place
from zoomzero.bench.cases import OPS
from zoomzero.bench.table import Table, differences, key_of
from zoomzero.bench.videos import video_cases
from zoomzero.cli import main

AT_BEST = {"copy": 10.0, "matmul float32": 0.1, "matmul bfloat16": 0.1}


def test_every_op_has_a_case_in_which_all_candidates_agree() -> None:
    ops = set()
    for cases in OPS:
        for case in cases(Place("cpu", "tiny", with_compile=False)):
            working, errors = measure._checked(case)
            assert not errors, (case.op, case.size, errors)
            assert next(iter(working)) == "ours"
            ops.add(case.op.split(",")[0])
    registered = {
        name.removeprefix("zoomzero::").removesuffix("_backward").removesuffix("_")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("zoomzero::") and "." not in name
    }
    assert ops == registered


def test_reading_and_answering_are_measured_and_frames_are_those_of_a_full_decode() -> None:
    pytest.importorskip("av")
    ops = []
    for case in video_cases(Place("cpu", "tiny")):
        working, errors = measure._checked(case)
        assert not errors
        ops.append(case.op)
        assert case.op != "open_video and frames_at" or "PyAV, every frame" in working
    assert ops == ["open_video and frames_at", "answer a question, single", "answer a question, coarse_to_fine"]


def test_the_command_measures_writes_and_compares_away_from_a_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; from zoomzero.cli import main; sys.exit(main())"
    asked = ["bench", "--device", "cpu", "--quick", "--only", "token_advantages"]
    command = [sys.executable, "-P", "-c", code, *asked, "--json", "old.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("copy ")
    old = json.loads((tmp_path / "old.json").read_text())
    assert [row["candidate"] for row in old["rows"]] == ["ours", "loop over responses"]
    assert old["rows"][0]["times_ours"] == 1.0
    assert old["ceilings"]["copy"] > 0
    assert main([*asked, "--compare", str(tmp_path / "old.json")]) == 0
    again = capsys.readouterr().out
    assert "x the old" in again
    assert "\033" not in again  # no terminal


def test_a_rivals_failure_is_told_and_ours_is_an_error() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no compiler\nat all")

    case = Case("op", "size", {"ours": lambda: torch.ones(2), "rival": broken, "eager": lambda: torch.zeros(2)})
    rows = measure._rows(case, measure.BenchOptions("cpu", quick=True), AT_BEST)
    assert rows[1]["error"] == "RuntimeError: no compiler"
    assert rows[2]["error"] == "differs from ours by 1, allowed 0.001"
    assert measure.failures(rows) == ["op size, eager: differs from ours by 1, allowed 0.001"]
    rows = measure._rows(dataclasses.replace(case, candidates={"ours": broken}), measure.BenchOptions("cpu"), AT_BEST)
    assert len(measure.failures(rows)) == 1


def test_the_share_of_the_ceiling_is_what_must_be_done_over_what_can_be() -> None:
    timing = measure.interleave({"ours": lambda: None}, rounds=1)["ours"]
    timing = dataclasses.replace(timing, median_ms=2.0)
    moving = Case("op", "size", {}, moved_bytes=10**7)
    assert measure.share_of_ceiling(moving, timing, AT_BEST) == 0.5  # 5 of 10 GB/s
    computing = Case("op", "size", {}, operations=10**8)
    assert measure.share_of_ceiling(computing, timing, AT_BEST) == 0.5  # 0.05 of 0.1 TFLOP/s
    assert measure.share_of_ceiling(Case("op", "size", {}), timing, AT_BEST) is None


def _row(candidate: str, median: float) -> dict[str, Any]:
    figures = {"median_ms": median, "p20_ms": median, "p80_ms": median, "times_ours": 1.0, "share_of_ceiling": None}
    return {"op": "op", "size": "size", "candidate": candidate, **figures}


def test_ratios_are_coloured_beyond_noise(capsys: pytest.CaptureFixture[str]) -> None:
    old = [_row("ours", 10.0), _row("a", 10.0), _row("b", 10.0)]
    new = [_row("ours", 5.0), _row("a", 20.0), _row("b", 10.2), _row("c", 1.0)]
    Table(old, colour=True).show(new)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert "\033[32m0.50x the old 10.0 ms\033[0m" in lines[0]
    assert "\033[31m2.00x the old 10.0 ms\033[0m" in lines[1]
    assert lines[2].endswith("1.02x the old 10.0 ms")
    assert lines[3].endswith("new")
    assert key_of(old[0]) == ("op", "size", "ours")


def test_another_machine_is_named() -> None:
    options = measure.BenchOptions("cpu")
    new = measure.document(options, AT_BEST, [])
    assert differences(new, new) == []
    old = {**new, "machine": {**new["machine"], "threads": 77}}
    assert differences(old, new) == [f"threads 77 -> {new['machine']['threads']}"]


@pytest.mark.parametrize("text", ["no json", "[]", '{"rows": [1]}', '{"rows": []}'])
def test_a_file_that_is_no_earlier_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    assert main(["bench", "--compare", str(path)]) == 1
    error = capsys.readouterr().err
    assert "--compare" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu9"], "device must be one of torch's, got 'tpu9'"),
        (["--device", "cuda:77"], "device must be one of this machine's"),
        (["--json", "/"], "it is a folder"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_measured(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ceilings", None)
    assert main(["bench", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_op_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ceilings", lambda device: AT_BEST)
    assert main(["bench", "--only", "nothing"]) == 1
    assert "--only: no op's name holds nothing" in capsys.readouterr().err
