"""Looks are read side by side and before their turn, and come out as if they were read one after the other."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from support.decoders import process_of

from zoomzero.looks import Look, PreparedPrompt
from zoomzero.looks.parallel_reads import ParallelReads
from zoomzero.looks.rows import RowEncoder
from zoomzero.patches import VideoPatches
from zoomzero.synthetic import make_clips, tiny_model, tiny_processor
from zoomzero.video import VideoError
from zoomzero.video.decoders import pool

SPANS = [[(4.0, 9.0)], [(1.0, 3.0), (20.0, 25.0)], [(30.0, 31.5)]]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(clip.path) for clip in make_clips(tmp_path_factory.mktemp("clips"), 3, seed=41)]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_model()


def encoder_of(model: torch.nn.Module, num_decoders: int, frame_bytes: int = 1 << 26, **options: object) -> RowEncoder:
    return RowEncoder(
        tiny_processor(),
        model,  # type: ignore[arg-type]
        freeze_vision=False,
        feature_bytes=1 << 26,
        frame_bytes=frame_bytes,
        num_decoders=num_decoders,
        **options,  # type: ignore[arg-type]
    )


def zoom_looks(encoder: RowEncoder, paths: list[str]) -> list[Look]:
    rows = [{"video": path, "question": "Which letter?", "options": ["A", "B"]} for path in paths]
    return [encoder.zoom_look(row, spans) for row in rows for spans in SPANS]


# Clips decoded into memory; files that stay open; one that is closed whenever the next is opened.
@pytest.mark.parametrize("frame_bytes", [1 << 28, 1 << 26, 1])
def test_the_prompts_of_reading_one_after_the_other(model: torch.nn.Module, paths: list[str], frame_bytes: int) -> None:
    prepared = []
    for num_decoders in (1, 3):
        encoder = encoder_of(model, num_decoders, frame_bytes)
        looks = zoom_looks(encoder, paths)
        encoder.expect(looks[3:])
        prepared.append([*encoder.prepare(looks[:3]), *encoder.prepare(looks[3:])])
        encoder.stop_reading_ahead()
    for one, other in zip(*prepared, strict=True):
        assert isinstance(one, PreparedPrompt)
        assert isinstance(other, PreparedPrompt)
        assert torch.equal(one.visual, other.visual)
        assert torch.equal(one.input_ids, other.input_ids)


def test_a_video_whose_decoder_is_slow_does_not_hold_up_the_others(model: torch.nn.Module, paths: list[str]) -> None:
    """The first video's decoder is stopped: its neighbours are read meanwhile, before anybody asks for them."""
    pool.stop()
    encoder = encoder_of(model, 2, frame_bytes=1 << 26, time_limit=60.0)
    encoder.videos.store._largest = 0
    slow, *others = zoom_looks(encoder, paths)[::3]
    processes = [process_of(encoder.video(path)) for path in paths[:2]]
    assert processes[0] != processes[1]
    os.kill(processes[0], signal.SIGSTOP)
    try:
        encoder.expect([slow, others[0]])
        assert isinstance(encoder.prepare([others[0]])[0], PreparedPrompt)
    finally:
        os.kill(processes[0], signal.SIGCONT)
    assert isinstance(encoder.prepare([slow])[0], PreparedPrompt)
    encoder.stop_reading_ahead()


def test_an_unreadable_video_costs_its_own_look_only(model: torch.nn.Module, paths: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone.mp4"
    gone.write_bytes(Path(paths[0]).read_bytes())
    encoder = encoder_of(model, 2, time_limit=60.0)
    encoder.videos.store._largest = 0
    looks = zoom_looks(encoder, [paths[0], str(gone), paths[1]])[::3]
    gone.write_bytes(b"something else")
    first, second, third = encoder.prepare(looks)
    assert isinstance(first, PreparedPrompt)
    assert isinstance(second, VideoError)
    assert "changed on disk" in second.reason
    assert isinstance(third, PreparedPrompt)
    with pytest.raises(VideoError, match="changed on disk"):
        encoder.video(str(gone))
    encoder.stop_reading_ahead()


def test_what_nobody_takes_is_let_go(model: torch.nn.Module, paths: list[str]) -> None:
    encoder = encoder_of(model, 2)
    looks = zoom_looks(encoder, paths)
    encoder.expect(looks)
    # Two are read at a time, and one more may wait.
    assert sum(look.frames_key in encoder._reads for look in looks) == 3
    encoder.end_batch([])
    assert not any(look.frames_key in encoder._reads for look in looks)
    assert isinstance(encoder.prepare([looks[0]])[0], PreparedPrompt)
    encoder.stop_reading_ahead()


def test_errors_other_than_a_closed_video_come_out(model: torch.nn.Module, paths: list[str]) -> None:
    encoder = encoder_of(model, 2)
    look = zoom_looks(encoder, paths[:1])[0]
    beyond = dataclasses.replace(look.plan, timestamps=(99.0, 100.0))
    reads = ParallelReads(encoder.processor.read, 2)
    reads.submit("beyond", encoder.video(paths[0]), beyond)
    while not reads._reads["beyond"].running() and not reads._reads["beyond"].done():
        pass
    with pytest.raises(ValueError, match="seconds must be in"):
        reads.take("beyond")
    assert reads.take("never submitted") is None
    patches = encoder.processor.read(encoder.video(paths[0]), look.plan)
    reads.keep("kept", patches)
    taken = reads.take("kept")
    assert isinstance(taken, VideoPatches)
    assert taken is patches
    reads.close()
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        ParallelReads(encoder.processor.read, 0)
