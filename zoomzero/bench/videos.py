"""Reading frames of a video and answering a question about it, with a clip and a model that the package brings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoomzero.bench.case import Case, Place, rival

NUM_FRAMES = 16
STRATEGIES = ("single", "coarse_to_fine")
MAX_NEW_TOKENS = 40


def video_cases(place: Place) -> Iterator[Case]:
    """Nothing where PyAV or transformers are missing: the kernels need neither."""
    av, transformers = rival("av"), rival("transformers")
    if av is None or transformers is None:
        return
    from zoomzero.answering.engine import ZoomZero
    from zoomzero.synthetic import make_clips
    from zoomzero.video import open_video

    with tempfile.TemporaryDirectory(prefix="zoomzero-bench-") as folder:
        clip = make_clips(folder, 1, seed=900, workers=1)[0]
        with open_video(clip.path) as video:
            times = np.linspace(0.0, video.duration, NUM_FRAMES, endpoint=False)
        ways: dict[str, Callable[..., Tensor]] = {"ours": _ours, "PyAV, every frame": partial(_every_frame, av)}
        torchcodec = rival("torchcodec.decoders")
        if torchcodec is not None:
            ways["torchcodec"] = partial(_torchcodec, torchcodec)
        yield Case(
            "open_video and frames_at",
            f"{NUM_FRAMES} frames of {video.duration:.0f} s, {video.width}x{video.height} H.264",
            {name: partial(way, clip.path, times) for name, way in ways.items()},
            tolerance=2.0,  # of 255: decoders differ in how they turn colours
        )
        engine = ZoomZero.from_pretrained(device=place.device)
        for strategy in STRATEGIES:
            ask = partial(_confidence, engine, clip, strategy)
            yield Case(f"answer a question, {strategy}", f"the tiny model, {video.duration:.0f} s", {"ours": ask})


def _ours(path: Path, times: Any) -> Tensor:
    from zoomzero.video import open_video

    with open_video(path) as video:
        return video.frames_at(times)[0]


def _every_frame(av: Any, path: Path, times: Any) -> Tensor:
    """What one writes without a frame table: decode all, keep those that are wanted."""
    with av.open(str(path)) as container:
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    starts = np.array([time for time, _ in decoded])
    places = np.searchsorted(starts, times + 1e-6, side="right") - 1
    return torch.from_numpy(np.stack([decoded[place][1] for place in places]))


def _torchcodec(decoders: Any, path: Path, times: Any) -> Tensor:
    decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC")
    return decoder.get_frames_played_at((times + 1e-6).tolist()).data


def _confidence(engine: Any, clip: Any, strategy: str) -> Tensor:
    from zoomzero.video import open_video

    asked = clip.questions[0]
    with open_video(clip.path) as video:
        answer = engine.answer(video, asked.question, asked.options, strategy, max_new_tokens=MAX_NEW_TOKENS)
    return torch.tensor(answer.confidence)
