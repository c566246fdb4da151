"""Checkpoints on disk: whole or not at all, and half-written ones told apart."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zoomzero.training.checkpoints import (
    PARTIAL_FOLDER,
    RUN_FILE,
    CheckpointError,
    delete_checkpoints,
    newest_checkpoint,
    replaced_whole,
    require_writable,
    why_incomplete,
    written_whole,
)

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json")


def _write(run: Path, name: str, steps: int, files: tuple[str, ...] = FILES) -> Path:
    with written_whole(run, name) as (folder, beside):
        for file in files:
            (folder / file).write_bytes(b"x" * 100)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps}))
        beside["skipped"] = []
    return run / name


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path).folder is None
    for steps in (2, 10, 9):
        _write(tmp_path, f"checkpoint-{steps}", steps)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    newest = newest_checkpoint(tmp_path)
    assert (newest.folder, newest.num_steps, newest.passed_over) == (tmp_path / "checkpoint-10", 10, [])
    _write(tmp_path, "stopped", 12)
    assert newest_checkpoint(tmp_path).folder == tmp_path / "stopped"
    assert newest_checkpoint(tmp_path).num_steps == 12
    _write(tmp_path, "checkpoint-12", 12)
    assert newest_checkpoint(tmp_path).folder == tmp_path / "checkpoint-12"
    delete_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-99", "checkpoint-x"]


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 40)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_unlink(RUN_FILE), f"{RUN_FILE}, which is written last, is missing"),
        (_cut(RUN_FILE), f"{RUN_FILE} cannot be read"),
        (_cut("model.safetensors"), "model.safetensors has 40 of 100 bytes"),
        (_cut("optimizer.pt"), "optimizer.pt has 40 of 100 bytes"),
        *((_unlink(name), f"{name} is missing") for name in (*FILES, "trainer_state.json")),
    ],
)
def test_half_written_checkpoints_are_passed_over(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    good, bad = _write(tmp_path, "checkpoint-3", 3), _write(tmp_path, "checkpoint-4", 4)
    damage(bad)
    newest = newest_checkpoint(tmp_path)
    assert (newest.folder, newest.passed_over) == (good, [(bad, reason)])


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [("optimizer.pt", "the optimizer's state is missing"), ("rng_state.pth", "it holds no rng_state")],
)
def test_a_checkpoint_saved_without_a_state_is_not_complete(tmp_path: Path, left_out: str, reason: str) -> None:
    folder = _write(tmp_path, "checkpoint-1", 1, tuple(name for name in FILES if name != left_out))
    assert why_incomplete(folder) == reason


def test_an_empty_folder_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    assert newest_checkpoint(tmp_path).passed_over[0][0].name == "checkpoint-7"


def test_an_incomplete_checkpoint_is_replaced(tmp_path: Path) -> None:
    folder = _write(tmp_path, "checkpoint-4", 4)
    (folder / "optimizer.pt").unlink()
    (folder / "left over").write_text("x")
    _write(tmp_path, "checkpoint-4", 4)
    assert why_incomplete(folder) is None
    assert not (folder / "left over").exists()
    assert not (tmp_path / PARTIAL_FOLDER).exists()


@contextmanager
def small_disk() -> Iterator[None]:
    """Files may not grow beyond 64 KiB: the kernel refuses the write as a full disk does.

    No fixture: pytest writes a test's letter before its fixtures end, and its output may be a larger file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def _as_safetensors(folder: Path) -> None:
    save_file({"weight": torch.zeros(1 << 16)}, folder / "model.safetensors")


def _as_torch(folder: Path) -> None:
    torch.save({"state": torch.zeros(1 << 16)}, folder / "large")


def _as_text(folder: Path) -> None:
    (folder / "large").write_text("x" * (1 << 17))


# safetensors, torch and Python report a refused write by three kinds of exception.
@pytest.mark.parametrize("write", [_as_safetensors, _as_torch, _as_text])
def test_a_refused_write_keeps_the_last_checkpoint_and_names_file_and_disk(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    good = _write(tmp_path, "checkpoint-3", 3)
    message = r"(large|model.safetensors): must be written, but the disk at /\S* \(\d+ MiB free\) refused it: .*"
    message += rf"{good} is the newest complete one"

    def attempt() -> None:
        with written_whole(tmp_path, "checkpoint-4") as (folder, _):
            (folder / "config.json").write_text("{}")
            write(folder)

    with small_disk(), pytest.raises(CheckpointError, match=message):
        attempt()
    assert newest_checkpoint(tmp_path).folder == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3"]


def test_a_refused_write_of_the_final_model_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("old")

    def attempt() -> None:
        with replaced_whole(tmp_path) as folder:
            (folder / "model.safetensors").write_text("new")
            _as_torch(folder)

    with small_disk(), pytest.raises(CheckpointError, match=r"no complete checkpoint is there; make room"):
        attempt()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with replaced_whole(tmp_path) as folder:
        (folder / "model.safetensors").write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_other_errors_pass_as_they_are_and_leave_nothing(tmp_path: Path) -> None:
    def attempt(error: BaseException) -> None:
        with written_whole(tmp_path, "checkpoint-4") as (folder, _):
            (folder / "config.json").write_text("{}")
            raise error

    for error in (RuntimeError("something else"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            attempt(error)
        assert list(tmp_path.iterdir()) == []


def test_unwritable_outputs_are_named(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder")
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below", Path("/proc/zoomzero")):
        with pytest.raises(OSError, match=r"the outputs must be writable, got .*; choose another folder") as found:
            require_writable(folder)
        assert found.value.filename == str(folder)
    (tmp_path / "skipped.jsonl").mkdir()
    with pytest.raises(IsADirectoryError, match="the outputs must be writable"):
        require_writable(tmp_path)


def test_state_files_hold_any_text(tmp_path: Path) -> None:
    strange = ["a \ud800 b", "Türöffner \u2028", "x" * 5000]
    with written_whole(tmp_path, "checkpoint-1") as (_, beside):
        beside["skipped"] = strange
    found: Any = json.loads((tmp_path / "checkpoint-1" / RUN_FILE).read_text())
    assert found["skipped"] == strange
