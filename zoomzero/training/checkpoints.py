"""Checkpoints on disk: written whole or not at all, found again, and told apart from half-written ones.

Note [Whole checkpoints]
A checkpoint is written into <run>/.saving, its files are flushed to the disk, a list of them with their sizes is
written last, and then the folder is renamed to its place. A process killed at any moment therefore leaves the
checkpoints that were there, and at most a folder .saving that the next save clears away. The list tells copies that
were cut short, and folders from which files were deleted, from whole ones.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PARTIAL_FOLDER = ".saving"
# A stopped run keeps its steps under this name; it is a checkpoint like the others.
STOPPED_FOLDER = "stopped"
RUN_FILE = "zoomzero_run.json"
STATE_FILE = "trainer_state.json"


class CheckpointError(OSError):
    """A checkpoint could not be written; the message says which file on which disk, and what is left."""


@dataclass(frozen=True)
class Newest:
    """What a run can go on from."""

    folder: Path | None
    """The complete checkpoint with the most steps, None where there is none."""
    num_steps: int
    """Its steps, 0 without one."""
    passed_over: list[tuple[Path, str]]
    """Checkpoints with as many steps or more that are not complete, and why."""


def newest_checkpoint(run: Path) -> Newest:
    """The newest complete checkpoint in a run's folder."""
    found = [(steps, folder) for folder in _folders(run) if (steps := _named_steps(folder)) is not None]
    passed_over: list[tuple[Path, str]] = []
    # Steps decide; checkpoint-N comes before a stopped run's folder of as many.
    for steps, folder in sorted(found, key=lambda pair: (pair[0], pair[1].name != STOPPED_FOLDER), reverse=True):
        reason = why_incomplete(folder)
        if reason is None:
            return Newest(folder, steps, passed_over)
        passed_over.append((folder, reason))
    return Newest(None, 0, passed_over)


def _folders(run: Path) -> list[Path]:
    return [path for path in [*run.glob("checkpoint-*"), run / STOPPED_FOLDER] if path.is_dir()]


def _named_steps(folder: Path) -> int | None:
    """Steps of a checkpoint, from its name, or for a stopped run's from its state; None for other folders."""
    number = folder.name.removeprefix("checkpoint-")
    if number.isdecimal():
        return int(number)
    if folder.name != STOPPED_FOLDER:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["global_step"])
    return 0


def why_incomplete(folder: Path) -> str | None:
    """Why training cannot go on from a checkpoint, or None if it can."""
    try:
        files = read_run_file(folder)["files"]
        for name, size in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} of {size} bytes"
    except FileNotFoundError:
        return f"{RUN_FILE}, which is written last, is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{RUN_FILE} cannot be read"
    for wanted in ("optimizer", "scheduler", "rng_state", STATE_FILE, "model"):
        if not any(name.startswith((wanted, f"adapter_{wanted}")) for name in files):
            return "the optimizer's state is missing" if wanted == "optimizer" else f"it holds no {wanted}"
    return None


def read_run_file(folder: Path) -> dict[str, Any]:
    """What `written_whole` wrote beside a checkpoint's files."""
    found: dict[str, Any] = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def written_whole(run: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write the folder `name` of a run whole or not at all; see Note [Whole checkpoints].

    Yields the folder to write into and what to put beside its list of files.

    Raises:
        CheckpointError: the disk is full, or the files cannot be written for another reason.
    """
    partial = run / PARTIAL_FOLDER
    with explained(run, partial):
        shutil.rmtree(partial, ignore_errors=True)
        folder = partial / name
        folder.mkdir(parents=True)
        beside: dict[str, Any] = {}
        yield folder, beside
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        run_file = folder / RUN_FILE
        run_file.write_text(json.dumps({"files": sizes, **beside}) + "\n", encoding="utf-8")
        for path in [*files, run_file, folder]:
            _flush(path)
        final = run / name
        if final.exists():
            # Not complete, or of an earlier stop. Two renames, so that no moment has half a folder under the name.
            final.rename(partial / "replaced")
        folder.rename(final)
        _flush(run)


@contextlib.contextmanager
def replaced_whole(run: Path) -> Iterator[Path]:
    """Write files into the folder that this yields; they then replace those of their names in `run`, the weights last.

    Raises:
        CheckpointError: they cannot be written; `run` then holds what it held before.
    """
    partial = run / PARTIAL_FOLDER
    with explained(run, partial):
        shutil.rmtree(partial, ignore_errors=True)
        folder = partial / "model"
        folder.mkdir(parents=True)
        yield folder
        files = sorted(folder.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name))
        for path in files:
            _flush(path)
        for path in files:
            path.replace(run / path.name)
        _flush(run)


def _flush(path: Path) -> None:
    """Have the disk hold a file's content or a folder's entries, so that a power cut does not take them back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(run: Path, partial: Path) -> Iterator[None]:
    """Turn a failure to write below `partial` into a CheckpointError, and take the unfinished files away.

    safetensors and torch.save raise errors of their own kinds, most without a file's name.
    """
    try:
        yield
    except Exception as error:
        if not _is_write_failure(error):
            raise
        raise CheckpointError(_explanation(run, partial, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# What torch.save says when a write is refused, by the writer's place in its sources and by its messages.
_TORCH_WRITE_FAILURES = ("inline_container", "iostream error", "PytorchStreamWriter", "file write failed")


def _is_write_failure(error: Exception) -> bool:
    if isinstance(error, OSError | SafetensorError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITE_FAILURES)


def _explanation(run: Path, partial: Path, error: Exception) -> str:
    disk = _mount_point(run)
    free = shutil.disk_usage(disk).free
    newest = newest_checkpoint(run)
    left = "no complete checkpoint is there" if newest.folder is None else f"{newest.folder} is the newest complete one"
    return (
        f"{_refused_file(partial, error)}: must be written, but the disk at {disk} ({free >> 20} MiB free) refused it: "
        f"{error}; {left}; make room and go on with --resume"
    )


def _refused_file(partial: Path, error: Exception) -> Path:
    """The file that the error is about, as far as it can be told."""
    named = getattr(error, "filename", None)
    if named:
        return Path(named)
    files = [path for path in partial.rglob("*") if path.is_file()]
    last = max(files, key=lambda path: path.stat().st_mtime_ns, default=partial)
    # safetensors takes its unfinished file away; the name is the one that save_pretrained gives it.
    return last.with_name("model.safetensors") if isinstance(error, SafetensorError) else last


def _mount_point(path: Path) -> Path:
    path = path.resolve()
    while not path.is_mount() and path != path.parent:
        path = path.parent
    return path


def delete_checkpoints(run: Path) -> None:
    """Delete all checkpoints of a run, complete or not."""
    for folder in _folders(run):
        if _named_steps(folder) is not None:
            shutil.rmtree(folder)


def require_writable(run: Path) -> None:
    """OSError unless a run's outputs can be written: to be told before a model is loaded and steps are taken."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run) as file:
            file.write(b"x")
        for existing in run.glob("*.jsonl"):
            with existing.open("a", encoding="utf-8"):
                pass
    except OSError as error:
        raise type(error)(
            error.errno or errno.EIO,
            f"the outputs must be writable, got {error.strerror}; choose another folder",
            str(run),
        ) from error


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What differs between a checkpoint's run and this one, in words."""
    return [
        f"{name} {saved.get(name)!r} then and {current[name]!r} now"
        for name in current
        if saved.get(name) != current[name]
    ]
