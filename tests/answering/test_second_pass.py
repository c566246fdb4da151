"""A second pass seeks: what it decodes beside the first, counted in packets, on ten minutes of H.264."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.video_files import ClipSpec, write_clip

from zoomzero import Query, ZoomZero
from zoomzero.answering.answer import AnswerOptions
from zoomzero.answering.backends import local
from zoomzero.inputs import VideoInputs
from zoomzero.rollouts import Rollouts
from zoomzero.video.frame_reader import FrameReader
from zoomzero.video.segments import SegmentReader

RATE, GOP = 4, 40
SAID = "<think> red <time>(301, 309)</time></think>\n<answer>A</answer>\n<glue>[(301, 309), (500, 504)]</glue>"


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 frames, a key frame every ten seconds."""
    options = {"preset": "ultrafast", "x264-params": "scenecut=0"}
    spec = ClipSpec("ten.mp4", num_frames=600 * RATE, rate=RATE, gop=GOP, options=options)
    return write_clip(tmp_path_factory.mktemp("clips"), spec)


def _engine(frame_choice: str) -> ZoomZero:
    """The tiny model at a coarse pass that must decode the whole file where frames are exact."""
    engine = ZoomZero.from_pretrained(device="cpu")
    settings = engine.processor.settings
    coarse = dataclasses.replace(
        settings.coarse, budget_tokens=256, max_frames=300, sample_fps=0.5, frame_choice=frame_choice
    )
    zoom = dataclasses.replace(settings.zoom, frame_choice=frame_choice)
    changed = dataclasses.replace(settings, coarse=coarse, zoom=zoom)
    return ZoomZero(engine.model, VideoInputs(engine.processor.tokenizer, changed, engine.processor.geometry))


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per packet that any decoder is given; the model names spans in the middle of the video."""
    counted: list[int] = []
    one, segment = FrameReader._decoded, SegmentReader._decode

    def decoded(self: FrameReader, packet: Any) -> Any:
        counted.append(1)
        return one(self, packet)

    def decode(self: SegmentReader, some: Sequence[Any], wanted: frozenset[int]) -> Any:
        counted.extend([1] * len(some))
        return segment(self, some, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(FrameReader, "_decoded", decoded)
    monkeypatch.setattr(SegmentReader, "_decode", decode)
    tokenizer = ZoomZero.from_pretrained(device="cpu").processor.tokenizer
    ids = torch.tensor([tokenizer(SAID, add_special_tokens=False).input_ids])
    logps = torch.full(ids.shape, 0.4).log()
    said = Rollouts(ids, torch.ones_like(ids, dtype=torch.bool), logps, torch.tensor([True]))
    monkeypatch.setattr(local, "generate", lambda _model, prompts, *_: _repeated(said, len(prompts)))
    return counted


def _repeated(said: Rollouts, count: int) -> Rollouts:
    rows = [0] * count
    return said.select(rows)


def _cost(engine: ZoomZero, video: Path, strategy: str, packets: list[int]) -> int:
    packets.clear()
    (answer,) = engine.answer_batch([Query(video, "Which letter?", ("A", "B", "C", "D"))], AnswerOptions(strategy))
    assert strategy == "single" or any(look.looked_at for look in answer.passes)
    engine._videos.close()  # the next strategy opens the file anew
    return len(packets)


def test_exact_frames_of_a_zoom_cost_their_own_groups_of_pictures(ten_minutes: Path, packets: list[int]) -> None:
    names = ("single", "coarse_to_fine", "rounds")
    costs = {name: _cost(_engine("exact"), ten_minutes, name, packets) for name in names}
    # Exact frames two seconds apart need every packet once, but for those that no other frame refers to.
    assert 600 * RATE * 0.7 < costs["single"] <= 600 * RATE + 10
    # Two spans in two groups of pictures each.
    assert costs["coarse_to_fine"] - costs["single"] <= 3 * GOP
    assert costs["coarse_to_fine"] <= 1.3 * costs["single"]
    assert costs["rounds"] <= 1.3 * costs["single"]


def test_key_frames_of_a_zoom_cost_a_packet_each(ten_minutes: Path, packets: list[int]) -> None:
    costs = {name: _cost(_engine("keyframes"), ten_minutes, name, packets) for name in ("single", "coarse_to_fine")}
    # Frames whose key frame is further than a step of the plan are read as they are.
    assert costs["coarse_to_fine"] - costs["single"] <= 3 * GOP
    assert costs["single"] <= 600 * RATE
