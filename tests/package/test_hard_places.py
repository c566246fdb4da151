"""Long paths, folders that change, read-only homes, full disks and two runs at once: an error that says so, or none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.decoders import process_of
from support.video_files import ClipSpec, numbers_in, write_clip
from support.zoom_clips import clip_rows

from zoomzero.cli import main
from zoomzero.files import lock_folder
from zoomzero.synthetic import make_clips, tiny_model, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.video import VideoError, open_video
from zoomzero.video.decoders import Decoder

WAYS = [None, 60.0]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("film"), ClipSpec("film.mp4", num_frames=120, gop=30))


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path has about 4,000 characters, made from inside: few tools go there in one step."""
    before = Path.cwd()
    folder = tmp_path
    try:
        while len(str(folder)) < 3900:
            folder = folder / ("d" * min(200, 3980 - len(str(folder))))
            folder.mkdir()
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("time_limit", WAYS)
def test_paths_of_four_thousand_characters(film: Path, deep: Path, time_limit: float | None) -> None:
    path = deep / "film.mp4"
    shutil.copy(film, path)
    assert 3900 < len(str(path)) < 4096
    with open_video(path, time_limit=time_limit) as video:
        assert numbers_in(video.frames_at([3.5, 0.5])[0]) == [105, 15]
    with pytest.raises(VideoError, match=r"cannot be opened: File name too long$"):
        open_video(str(path) + "x" * 200, time_limit=time_limit)
    with pytest.raises(VideoError, match=r"cannot be opened: File name too long$"):
        open_video(film.parent / ("x" * 4000), time_limit=time_limit)


def test_commands_name_a_path_that_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = str(tmp_path / ("x" * 4000))
    for command in (["answer", long, "Which letter?"], ["eval", long], ["train", long, "--out", str(tmp_path / "out")]):
        assert main(command) == 1
        assert "file name too long" in capsys.readouterr().err.lower()


@pytest.mark.parametrize("time_limit", WAYS)
def test_a_relative_path_goes_on_in_another_folder(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_limit: float | None
) -> None:
    monkeypatch.chdir(film.parent)
    with open_video("film.mp4", time_limit=time_limit) as video:
        assert numbers_in(video.frames_at([1.0])[0]) == [30]
        monkeypatch.chdir(tmp_path)
        if time_limit is None:
            # The file is opened anew, as after damage.
            video._reader.restart()  # type: ignore[attr-defined]
        else:
            os.kill(process_of(video), signal.SIGKILL)
        assert numbers_in(video.frames_at([3.0, 0.5])[0]) == [90, 15]
        assert video.path == "film.mp4"
        with pytest.raises(VideoError, match=r"film\.mp4: no such file"):
            open_video("film.mp4", time_limit=time_limit)


# -- users and disks -------------------------------------------------------------------------------------------------

READS_EVERYTHING = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *READS_EVERYTHING]


def test_a_user_who_can_write_nowhere(tmp_path: Path) -> None:
    """Neither into the package nor into a home or cache: answers are printed all the same."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become another user")
    if subprocess.run([*NOBODY, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("needs a kernel that lets another user read everything")
    clip = make_clips(tmp_path, 1, seed=5)[0]
    question = ["Which letter is on the red sign?", "--options", "A", "B", "C", "D", "--max-new-tokens", "8"]
    start = "import os, sys; assert not os.access(sys.argv.pop(1), os.W_OK)"
    start += "; from zoomzero.cli import main; sys.exit(main())"
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    package = Path(sys.modules["zoomzero"].__file__ or "").parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG", "HF", "TORCH"))}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*NOBODY, sys.executable, "-c", start, str(package), "answer", str(clip.path), *question]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "answer: " in done.stdout
    command[command.index("answer") :] = ["train", str(tmp_path / "annotations.json"), "--out", str(home / "out")]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(home / "out") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_while_clips_are_made(small_disk: Path) -> None:
    with pytest.raises((RuntimeError, OSError), match="No space left on device"):
        make_clips(small_disk, 12, seed=5, workers=1)
    # What is there under a clip's own name is whole; with room, the rest is made.
    for path in small_disk.glob("*.mp4"):
        with open_video(path) as video:
            assert video.num_frames == 128
            assert video.damage is None
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    clips = make_clips(small_disk, 12, seed=5, workers=1)
    for clip in clips:
        with open_video(clip.path) as video:
            assert video.num_frames == 128


# -- processes -------------------------------------------------------------------------------------------------------


def test_decoders_killed_during_training_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third request for frames finds its process killed: the same weights as without, and no sample skipped."""
    rows = clip_rows(tmp_path, 2)
    processor = tiny_processor()
    send, requests, killed = Decoder._send, [0], [0]

    def deadly(self: Decoder, message: dict[str, object], limit: float) -> None:
        if message["op"] == "read":
            requests[0] += 1
            if requests[0] % 3 == 0:
                killed[0] += 1
                os.kill(self.process.pid, signal.SIGKILL)
        send(self, message, limit)

    weights = []
    for kills in (False, True):
        if kills:
            monkeypatch.setattr(Decoder, "_send", deadly)
        config = ZoomZeroConfig(
            output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True, seed=1, num_generations=4,
            per_device_train_batch_size=4, max_completion_length=24, learning_rate=1e-3, save_strategy="no",
            shuffle_dataset=False, max_steps=4, max_skipped_fraction=0.0, frame_cache_bytes=1, feature_cache_bytes=1,
        )  # fmt: skip
        trainer = ZoomZeroTrainer(tiny_model(processor.tokenizer), config, rows, None, processor)
        trainer.train()
        assert trainer.state.global_step == 4
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert killed[0] >= 2
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not (tmp_path / "run" / "skipped.jsonl").exists()


def test_two_trainings_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_clips(tmp_path, 2, seed=5)
    out = tmp_path / "out"
    out.mkdir()
    command = ["train", str(tmp_path / "annotations.json"), "--out", str(out), "--prompts", "1", "--rollouts", "2"]
    command += ["--steps", "1", "--max-new-tokens", "4"]
    handle = lock_folder(out)
    try:
        assert main(command) == 1
        error = capsys.readouterr().err
        assert f"only one run may write into a folder, got a second one beside process {os.getpid()}" in error
        assert not (out / "model.safetensors").exists()
    finally:
        os.close(handle)
    assert main(command) == 0
    assert (out / "model.safetensors").exists()
    # The lock is free again.
    os.close(lock_folder(out))
