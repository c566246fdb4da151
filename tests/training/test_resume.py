"""Runs that end early and go on: nothing lost, and the same as if they had not been interrupted."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zoomzero.annotations import Sample, load_annotations
from zoomzero.synthetic import make_clips
from zoomzero.training import collect
from zoomzero.training.checkpoints import newest_checkpoint
from zoomzero.training.run import train, train_config
from zoomzero.training.stopping import StepBoundary

STEPS = 7
# Three rows per step of seven: an epoch ends in the middle of the run, and its last row is left over.
SETTINGS = {"prompts": 3, "num_generations": 2, "max_completion_length": 24, "learning_rate": 1e-3, "seed": 3}
# Of another moment or another machine, not of the steps.
TIMES = re.compile(r"seconds/|_time$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 4, seed=17)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    """Seven questions, one of them on a video that is gone."""
    samples = load_annotations(folder / "annotations.json")[:7]
    gone = shutil.copy(samples[4].video, folder / "gone.mp4")
    Path(gone).unlink()
    return [*samples[:4], Sample(**{**vars(samples[4]), "video": str(gone)}), *samples[5:]]


def _run(out: Path, samples: list[Sample], *, steps: int = STEPS, **options: Any) -> list[dict[str, float]]:
    call = {name: options.pop(name) for name in ("resume", "start_over") if name in options}
    settings = {"max_skipped_fraction": 0.5, "video_time_limit": None, **SETTINGS, **options}
    return train(None, samples, train_config(out, steps=steps, **settings), **call)[1]


def _figures(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if not TIMES.search(name)} for entry in history]


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def _optimizer(checkpoint: Path) -> Any:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]


def _assert_equal_runs(out: Path, whole: Path) -> None:
    for name, weight in _weights(whole).items():
        assert torch.equal(weight, _weights(out)[name]), name
    assert (out / "skipped.jsonl").read_text() == (whole / "skipped.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """The folder and the figures of the uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    return out, _run(out, samples, save_every=1)


Whole = tuple[Path, list[dict[str, float]]]


def test_checkpoints_stand_at_every_step(whole: Whole) -> None:
    names = sorted(path.name for path in whole[0].glob("checkpoint-*"))
    assert names == [f"checkpoint-{step}" for step in range(1, STEPS + 1)]
    assert whole[1][-1]["num_skipped"] == 1
    assert len({entry["loss"] for entry in whole[1]}) == STEPS


# In the first epoch, at its end (two steps of three rows), and in later ones.
@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(
    whole: Whole, samples: list[Sample], tmp_path: Path, step: int
) -> None:
    shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    # Lines of steps that the checkpoint does not have.
    shutil.copy(whole[0] / "skipped.jsonl", tmp_path)
    history = _run(tmp_path, samples, save_every=1, resume=True)
    assert _figures(history) == _figures(whole[1])
    _assert_equal_runs(tmp_path, whole[0])
    last = f"checkpoint-{STEPS}"
    ours, theirs = _optimizer(tmp_path / last), _optimizer(whole[0] / last)
    assert all(torch.equal(ours[key][name], theirs[key][name]) for key in theirs for name in theirs[key])


def test_an_incomplete_newest_checkpoint_is_passed_over(
    whole: Whole, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 5, 6):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    os.truncate(tmp_path / "checkpoint-6" / "model.safetensors", 1000)
    (tmp_path / "checkpoint-5" / "optimizer.pt").unlink()
    history = _run(tmp_path, samples, resume=True)
    assert _figures(history) == _figures(whole[1])
    error = capsys.readouterr().err
    assert "checkpoint-6 is not complete (model.safetensors has 1000 of" in error
    assert "checkpoint-5 is not complete (optimizer.pt is missing); passed over" in error
    assert f"going on from {tmp_path / 'checkpoint-4'}, 4 steps" in error


def _stop_in(monkeypatch: pytest.MonkeyPatch, call: int, stop: Callable[[], None]) -> None:
    """Stop in the middle of a step, after its responses were drawn."""
    calls, generate = iter(range(1, 100)), collect.generate

    def stopping(*args: Any) -> Any:
        rollouts = generate(*args)
        if next(calls) == call:
            stop()
        return rollouts

    monkeypatch.setattr(collect, "generate", stopping)


def _raise(error: BaseException) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


def _send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (_send(signal.SIGINT), KeyboardInterrupt),
        (_send(signal.SIGTERM), SystemExit),
        (_raise(MemoryError("no more")), MemoryError),
        (_raise(torch.OutOfMemoryError("no more")), torch.OutOfMemoryError),
        (_raise(RuntimeError("of any kind")), RuntimeError),
    ],
)
def test_a_run_that_ends_early_keeps_its_steps_and_goes_on_as_if_it_had_not(
    whole: Whole,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: Callable[[], None],
    expected: type[BaseException],
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        _stop_in(patch, 4, stop)
        with pytest.raises(expected) as found:
            _run(tmp_path, samples)
    assert expected is not SystemExit or found.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert f"stopped after 3 steps, kept in {tmp_path / 'stopped'}; --resume goes on" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
    history = _run(tmp_path, samples, resume=True)
    assert _figures(history) == _figures(whole[1])
    _assert_equal_runs(tmp_path, whole[0])
    assert not (tmp_path / "stopped").exists()


def test_nothing_is_kept_of_no_step(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_in(monkeypatch, 1, _raise(RuntimeError("at once")))
    with pytest.raises(RuntimeError, match="at once"):
        _run(tmp_path, samples)
    assert newest_checkpoint(tmp_path).folder is None


def test_signals_wait_while_weights_change(
    whole: Whole, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal inside the optimizer's step ends the run after that step, with the step's own figures logged."""
    step, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(SystemExit):
            _run(tmp_path, samples)
    assert newest_checkpoint(tmp_path).num_steps == 3
    assert _figures(_run(tmp_path, samples, resume=True)) == _figures(whole[1])


def test_an_error_inside_a_weight_update_leaves_a_model_but_nothing_to_go_on_from(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = torch.optim.AdamW.step, iter(range(1, 100))

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        step(self, *args, **options)
        if next(calls) == 3:
            raise torch.OutOfMemoryError("in the middle")

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)
    with pytest.raises(torch.OutOfMemoryError):
        _run(tmp_path, samples, save_every=2)
    # Two steps are whole, and checkpoint-2 holds them already.
    assert f"stopped after 2 steps, which {tmp_path / 'checkpoint-2'} holds" in capsys.readouterr().err
    assert newest_checkpoint(tmp_path).folder == tmp_path / "checkpoint-2"
    other = tmp_path / "other"
    calls = iter(range(1, 100))
    with pytest.raises(torch.OutOfMemoryError):
        _run(other, samples)
    assert "in the middle of a weight update, so as a model only" in capsys.readouterr().err
    assert (other / "stopped" / "model.safetensors").exists()
    assert newest_checkpoint(other).folder is None


def test_a_full_disk_keeps_the_last_checkpoint(
    whole: Whole, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoomzero.training.checkpoints import CheckpointError

    save = torch.save

    def refused(state: Any, file: Any, *args: Any, **options: Any) -> None:
        if "checkpoint-4" in str(file) and "optimizer" in str(file):
            raise OSError(28, "No space left on device", str(file))
        save(state, file, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refused)
        with pytest.raises(CheckpointError, match=r"checkpoint-4/optimizer.pt: must be written, but the disk at"):
            _run(tmp_path, samples, save_every=1)
    assert newest_checkpoint(tmp_path).folder == tmp_path / "checkpoint-3"
    assert _figures(_run(tmp_path, samples, resume=True)) == _figures(whole[1])


def test_an_earlier_run_is_neither_overwritten_nor_mixed_in(
    whole: Whole, samples: list[Sample], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"no checkpoints of an earlier run, got checkpoint-2; go on .*--resume"):
        _run(tmp_path, samples)
    with pytest.raises(ValueError, match=r"checkpoint-2 must be of this run, got rows 7 then and 6 now; digest"):
        _run(tmp_path, samples[:6], resume=True)
    with pytest.raises(ValueError, match="must be of this run, got seed 3 then and 4 now; resume with the same"):
        _run(tmp_path, samples, resume=True, seed=4)
    _run(tmp_path, samples, steps=1, start_over=True)
    assert not (tmp_path / "checkpoint-2").exists()
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"got .* with a trained model and none; choose another folder"):
        _run(tmp_path, samples, resume=True)


def test_a_finished_run_takes_no_more_steps(
    whole: Whole, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = f"checkpoint-{STEPS}"
    shutil.copytree(whole[0] / last, tmp_path / last)
    shutil.copy(whole[0] / "skipped.jsonl", tmp_path)
    monkeypatch.setattr(collect, "generate", None)
    assert _figures(_run(tmp_path, samples, resume=True)) == _figures(whole[1])
    _assert_equal_runs(tmp_path, whole[0])


def test_older_checkpoints_go(samples: list[Sample], tmp_path: Path) -> None:
    _run(tmp_path, samples, steps=5, save_every=1, keep_last=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_unwritable_outputs_are_told_before_a_model_is_loaded(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoomzero.answering.engine import ZoomZero

    monkeypatch.setattr(ZoomZero, "from_pretrained", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the outputs must be writable"):
        _run(tmp_path / "file" / "out", samples)


def test_wrong_counts_are_refused(tmp_path: Path) -> None:
    for name in ("steps", "prompts", "save_every", "keep_last"):
        options = {"steps": 1, "prompts": 1, name: 0}
        with pytest.raises(ValueError, match=f"train: {name} must be at least 1, got 0; raise it"):
            train_config(tmp_path, **options)


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    import threading

    def enter() -> None:
        with StepBoundary():
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()


def test_a_run_killed_before_its_first_checkpoint_begins_with_no_sample_skipped(
    whole: Whole, samples: list[Sample], tmp_path: Path
) -> None:
    shutil.copy(whole[0] / "skipped.jsonl", tmp_path)
    _run(tmp_path, samples, save_every=1, resume=True)
    _assert_equal_runs(tmp_path, whole[0])
