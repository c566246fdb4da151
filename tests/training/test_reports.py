"""What `report_to` hands on: our figures in TensorBoard's event files, the sampled responses as tables."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from zoomzero.rewards import REWARDS
from zoomzero.training import ZoomZeroTrainer

pytest.importorskip("tensorboardX")

from tensorboardX.proto.event_pb2 import Event  # after the line that skips

Build = Callable[..., ZoomZeroTrainer]


def _events(file: Path) -> Iterator[Any]:
    """The records of an event file: length, its checksum, a message, its checksum."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += length + 16


def test_figures_reach_tensorboard_and_responses_a_table(build: Build, tmp_path: Path) -> None:
    trainer = build(report_to=["tensorboard"], max_steps=2, log_completions=True)
    trainer.train()
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    found: dict[tuple[str, int], float] = {}
    for event in _events(file):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag, event.step] = value.simple_value
    logged = [entry for entry in trainer.state.log_history if "miou" in entry]
    assert len(logged) == 2
    wanted = [f"rewards/{name}/mean" for name in REWARDS]
    wanted += ["miou", "zoom_accuracy", "entropy", "loss", "seconds/generation", "seconds/waited_for_frames"]
    for entry in logged:
        for name in wanted:
            assert found[f"train/{name}", entry["step"]] == pytest.approx(entry[name], rel=1e-6), name
    # TRL writes the table of a step for every place it reports to, and to its folder.
    for step in (1, 2):
        (file,) = (tmp_path / "run" / "completions").glob(f"*_{step:05d}.parquet")
        table = pyarrow.parquet.read_table(file).to_pydict()
        assert {"prompt", "completion", "advantage", *REWARDS} <= table.keys()
        assert len(table["completion"]) == 8
        mean = sum(table["iou"]) / 8
        assert mean == pytest.approx(next(entry["miou"] for entry in logged if entry["step"] == step), abs=1e-6)
