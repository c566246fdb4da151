"""Videos in training: kept, read ahead of their batch, and skipped where they cannot be read."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.decoders import stop_at
from support.zoom_clips import clip_rows
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.budget import FramePlan
from zoomzero.inputs import VideoInputs
from zoomzero.looks.read_ahead import THREAD_NAME, ReadAhead, ReadVideo, Reserve
from zoomzero.looks.rows import RowEncoder
from zoomzero.looks.videos import VideoStore
from zoomzero.patches import VideoPatches
from zoomzero.synthetic import tiny_model, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer, collect
from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.memory import DecodedVideo

Row = dict[str, Any]
Build = Callable[..., ZoomZeroTrainer]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Three clips, two questions each."""
    return clip_rows(tmp_path_factory.mktemp("clips"), 3)


@pytest.fixture(scope="module")
def processor() -> VideoInputs:
    return tiny_processor()


@pytest.fixture
def build(processor: VideoInputs, tmp_path: Path) -> Build:
    """A trainer of one group of four short rollouts per step, in the rows' order; keyword arguments change that."""

    def make(train_dataset: list[Row], **changes: Any) -> ZoomZeroTrainer:
        settings = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 1,
            "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 6, "learning_rate": 1e-3,
            "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant", "shuffle_dataset": False,
            "max_steps": len(train_dataset), "max_skipped_fraction": 0.5, **changes,
        }  # fmt: skip
        model: Qwen2_5_VLForConditionalGeneration = tiny_model(processor.tokenizer)
        evaluation = settings.pop("eval_dataset", None)
        return ZoomZeroTrainer(model, ZoomZeroConfig(**settings), train_dataset, evaluation, processor)

    return make


@pytest.fixture
def broken(rows: list[Row], tmp_path: Path) -> list[Row]:
    """The two questions of the second clip, whose file is no video."""
    path = tmp_path / "broken.mp4"
    path.write_text("not a video")
    return [{**row, "video": str(path)} for row in rows[2:4]]


def _weights(trainer: ZoomZeroTrainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def _batch(*rows: Row) -> list[Row]:
    return [row for row in rows for _ in range(4)]


def _lines(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]


def _threads() -> int:
    return sum(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate())


# -- kept ------------------------------------------------------------------------------------------------------------


def test_decoded_videos_give_the_files_frames(rows: list[Row]) -> None:
    times = [0.0, 3.3, 31.9, 3.3]
    with open_video(rows[0]["video"]) as file:
        frames, starts = file.frames_at(times)
        decoded = DecodedVideo(file)
    assert torch.equal(decoded.frames_at(times)[0], frames)
    assert decoded.frames_at(times)[1].tolist() == starts.tolist()
    assert decoded.duration == pytest.approx(32.0)


def test_small_videos_are_decoded_and_large_ones_stay_files(rows: list[Row]) -> None:
    path = rows[0]["video"]
    assert isinstance(VideoStore(1 << 26).get(path), DecodedVideo)
    store = VideoStore(1 << 20)
    assert not isinstance(store.get(path), DecodedVideo)
    assert store.get(path) is store.get(path)
    store.get(rows[2]["video"])
    assert len(store) == 1  # an open file counts, so the first one was closed


def test_a_video_that_was_unreadable_is_not_tried_again(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "late.mp4"
    store = VideoStore(1 << 20)
    for _ in range(2):
        with pytest.raises(VideoError, match=r"late\.mp4: no such file"):
            store.get(str(path))
        path.write_bytes(Path(rows[0]["video"]).read_bytes())


# -- skipped ---------------------------------------------------------------------------------------------------------


def test_an_unreadable_group_leaves_the_batch_as_if_it_had_not_been_there(
    build: Build, rows: list[Row], broken: list[Row], tmp_path: Path
) -> None:
    batches, fractions = [], []
    for batch in (_batch(rows[0], broken[0], rows[4]), _batch(rows[0], rows[4])):
        trainer = build(rows, beta=0.05)
        trainer.model.train()
        torch.manual_seed(5)
        batches.append(trainer._generate_and_score_completions(batch)["groups"])
        fractions += trainer._metrics["train"]["skipped_fraction"]
    first, second = batches
    assert len(first.prompts) == 2
    assert torch.equal(first.token_ids, second.token_ids)
    assert torch.equal(first.advantages, second.advantages)
    assert torch.equal(first.ref_logps, second.ref_logps)
    assert first.num_items == second.num_items
    assert fractions == pytest.approx([1 / 3, 0])
    (line,) = _lines(tmp_path)
    assert line["path"] == broken[0]["video"]
    assert line["sample"].startswith(broken[0]["question"])
    assert line["reason"].startswith("not a video file")


# The last three take the mean over a micro-batch, of which an empty one has none.
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_training_goes_on_when_all_videos_of_a_batch_are_unreadable(
    build: Build, rows: list[Row], broken: list[Row], tmp_path: Path, loss_type: str
) -> None:
    """Two micro-batches per step: one good step, one with an empty micro-batch, one without any group, then again."""
    data = [rows[0], rows[1], rows[4], broken[0], *broken]
    trainer = build(data, gradient_accumulation_steps=2, max_steps=6, loss_type=loss_type)
    trainer.train()
    logs = trainer.state.log_history[:6]
    assert [log["skipped_fraction"] for log in logs] == [0, 0.5, 1, 0, 0.5, 1]
    assert [log["num_skipped"] for log in logs] == [0, 1, 2, 2, 2, 2]
    assert logs[2]["loss"] == logs[2]["grad_norm"] == 0.0
    assert logs[1]["grad_norm"] > 0
    assert "reward" not in logs[2]
    assert all(torch.isfinite(weight).all() for weight in _weights(trainer).values())
    # Visited twice each, written down once each.
    assert [line["sample"] for line in _lines(tmp_path)] == [f"{row['question']} (A; B; C; D)" for row in broken]


def test_training_stops_when_too_many_are_unreadable(build: Build, rows: list[Row], broken: list[Row]) -> None:
    trainer = build([rows[0], *broken], max_skipped_fraction=0.34)
    with pytest.raises(
        VideoError,
        match=r"broken\.mp4: not a video.*2 of 3 samples have no readable video, more than max_skipped_fraction=0\.34",
    ):
        trainer.train()
    assert trainer.state.global_step == 2
    assert _threads() == 0


def test_a_video_that_breaks_in_the_zoom_leaves_the_batch(
    build: Build, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = VideoInputs.read

    def breaking(self: VideoInputs, video: Video, plan: FramePlan) -> VideoPatches:
        if video.path == rows[0]["video"] and len(plan.timestamps) <= 4:
            raise VideoError(video.path, "the frame at 3.000 s cannot be decoded")
        return encode(self, video, plan)

    # Before the trainer is there: its reading threads keep the method that they were made with.
    monkeypatch.setattr(VideoInputs, "read", breaking)
    trainer = build(rows)
    trainer.model.train()
    groups = trainer._generate_and_score_completions(_batch(rows[0], rows[2], rows[1]))["groups"]
    assert len(groups.prompts) == 1
    assert groups.token_ids.shape[0] == groups.advantages.shape[0] == 4
    assert [line["path"] for line in _lines(tmp_path)] == [rows[0]["video"]] * 2
    nothing = trainer._generate_and_score_completions(_batch(rows[0]))["groups"]
    assert nothing.prompts == []
    assert len(trainer._logs["completion"]) == 4


def test_evaluation_counts_its_own_samples(build: Build, rows: list[Row], broken: list[Row]) -> None:
    trainer = build(rows, eval_dataset=[rows[0], broken[0]], per_device_eval_batch_size=4)
    trainer.evaluate()
    assert trainer.state.log_history[-1]["eval_num_skipped"] == 1
    assert _threads() == 0
    others = Dataset.from_list([rows[0], rows[1], broken[0], broken[1]])
    trainer.evaluate(others)
    assert trainer.state.log_history[-1]["eval_num_skipped"] == 2
    with pytest.raises(VideoError, match="1 of 2 samples have no readable video"):
        build(rows, eval_dataset=[rows[0], broken[0]], max_skipped_fraction=0.2).evaluate()


def test_a_decoder_that_hangs_costs_its_own_group_only(
    build: Build, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build([rows[0], rows[2], rows[4]], video_time_limit=1.0)
    stop_at(monkeypatch, rows[2]["video"])
    trainer.train()
    assert trainer.state.global_step == 3
    (line,) = _lines(tmp_path)
    assert line["path"] == rows[2]["video"]
    assert "gave no sign of life for 1 s" in line["reason"]


# -- read ahead ------------------------------------------------------------------------------------------------------


def test_the_next_batch_is_read_while_the_model_works(
    build: Build, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation waits until the next batch's video was read: without a look-ahead training would never go on."""
    data = rows[::2]
    trainer = build(data)
    read = {row["video"]: threading.Event() for row in data}
    threads: list[str] = []
    encode, generate = VideoInputs.read, collect.generate
    following = iter([row["video"] for row in data[1:]])

    def watched(self: VideoInputs, video: Video, plan: FramePlan) -> VideoPatches:
        encoded = encode(self, video, plan)
        if len(plan.timestamps) > 4:  # the coarse pass
            threads.append(threading.current_thread().name)
            read[video.path].set()
        return encoded

    def waiting(*args: Any) -> Any:
        path = next(following, None)
        assert path is None or read[path].wait(60), f"{path} was not read during generation"
        return generate(*args)

    monkeypatch.setattr(VideoInputs, "read", watched)
    monkeypatch.setattr(collect, "generate", waiting)
    trainer.train()
    assert trainer.state.global_step == 3
    # Every clip's coarse frames were made once; all but the first certainly in the background.
    assert len(threads) == 3
    assert sum(name.startswith(THREAD_NAME) for name in threads) >= 2
    assert _threads() == 0
    assert len(trainer.encoder.videos.ahead) == 0


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_reading_ahead_changes_nothing(build: Build, rows: list[Row], freeze_vision: bool) -> None:
    # The second kind keeps every video a file and lets go of each at once.
    small = {"frame_cache_bytes": 1, "feature_cache_bytes": 1}
    weights = []
    for changes in ({"read_ahead_bytes": 0, "video_time_limit": None}, {}, small, {"read_ahead_bytes": 100}):
        trainer = build(rows, freeze_vision=freeze_vision, max_steps=8, **changes)
        trainer.train()
        weights.append(_weights(trainer))
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in other)


def test_processes_of_the_loader_do_not_read_ahead(build: Build, rows: list[Row]) -> None:
    trainer = build(rows, dataloader_num_workers=1, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def _reading(path: str, num_bytes: int, opened: list[Video], gate: threading.Event) -> Callable[[Reserve], ReadVideo]:
    def read(reserve: Reserve) -> ReadVideo | None:
        assert gate.wait(60)
        if not reserve(num_bytes):
            return None
        opened.append(open_video(path))
        return ReadVideo(opened[-1], None)

    return read


def test_what_is_read_ahead_is_bounded_and_closed(rows: list[Row]) -> None:
    ahead, opened, gate = ReadAhead(100), [], threading.Event()
    gate.set()
    paths = [row["video"] for row in rows[::2]]
    ahead.submit([(paths[0], _reading(paths[0], 60, opened, gate))])
    taken = ahead.take("another")
    assert taken is None
    while not opened:
        gate.wait(0.01)
    ahead.submit([(paths[1], _reading(paths[1], 60, opened, gate))])  # 120 bytes are too many
    ahead.submit([(paths[2], _reading(paths[2], 20, opened, gate))])
    while len(opened) < 2:
        gate.wait(0.01)
    # Taking of the third batch drops what is left of those before it.
    third = ahead.take(paths[2])
    assert third is not None
    assert [video.path for video in opened] == [paths[0], paths[2]]
    assert len(ahead) == 0
    with pytest.raises(ValueError, match="must be open, got a closed one"):
        opened[0].frames_at([0.0])
    assert len(third.video.frames_at([0.0])[0]) == 1
    third.video.close()
    ahead.close()
    assert ahead._num_bytes == 0


def test_what_has_not_begun_is_left_to_the_caller_and_errors_come_out(rows: list[Row]) -> None:
    ahead, opened, gate = ReadAhead(100), [], threading.Event()
    path = rows[0]["video"]
    # Two threads wait at the gate; the third video has not begun.
    ahead.submit([(name, _reading(path, 10, opened, gate)) for name in ("a", "b", "c")])
    assert ahead.take("c") is None
    gate.set()
    assert ahead.take("a") is not None

    def fail(reserve: Reserve) -> ReadVideo:
        reserve(50)
        raise VideoError("d", "broken")

    ahead.submit([("d", fail)])
    while len(ahead) and not ahead._items["d"].future.done():
        gate.wait(0.01)
    with pytest.raises(VideoError, match="d: broken"):
        ahead.take("d")
    ahead.close()
    assert _threads() == 0
    assert ahead._num_bytes == 0
    for video in opened:
        video.close()


def test_a_row_whose_length_is_not_the_files_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {**clip_rows(tmp_path, 1)[0], "duration": 40.0}
    encoder = RowEncoder(tiny_processor(), tiny_model(), freeze_vision=True, feature_bytes=1, frame_bytes=1)
    for _ in range(2):
        encoder.prepare_coarse([row])
    assert caplog.messages == [f"{row['video']}: annotated as 40.0 s, the file has 32.0 s"]
