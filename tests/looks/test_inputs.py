"""Model inputs against the real transformers video processor, and the rules for prompts and settings."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import Qwen2VLVideoProcessor

from zoomzero.inputs import VideoInputs, load_processor
from zoomzero.prompts import Inquiry, Prompts
from zoomzero.settings import PassSettings, ZoomSettings
from zoomzero.synthetic import make_clips, tiny_checkpoint, tiny_processor
from zoomzero.synthetic.clips import Clip
from zoomzero.video import open_video

OPTIONS = ("A", "B", "C", "D")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return make_clips(tmp_path_factory.mktemp("clips"), 1, seed=7)[0]


@pytest.fixture(scope="module")
def processor() -> VideoInputs:
    return tiny_processor()


# Coarse (64 frames, down to 16x16), zoomed (4 frames, full size) and a single frame, whose temporal patch is padded.
@pytest.mark.parametrize("spans", [None, [(5.0, 11.0)], [(5.0, 5.1)]])
def test_pixels_equal_those_of_transformers_processor(
    clip: Clip, processor: VideoInputs, spans: list[tuple[float, float]] | None
) -> None:
    with open_video(clip.path) as video:
        plan = processor.plan(video, spans)
        encoded = processor.read(video, plan)
        frames, _ = video.frames_at(plan.timestamps)
    # The size is the plan's: their processor has a budget of its own, so it gets the frames in that size.
    resized = resize(frames.permute(0, 3, 1, 2), list(plan.size), InterpolationMode.BICUBIC, antialias=True)
    theirs = Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=2)
    batch = theirs(videos=[resized], do_resize=False, do_sample_frames=False, return_tensors="pt")
    assert batch["video_grid_thw"].tolist() == encoded.video_grid_thw.tolist()
    # One level of 255 before normalisation is the most that rounding of the resize can differ.
    level = 1 / 255 / min(processor.geometry.std)
    difference = (batch["pixel_values_videos"] - encoded.pixel_values_videos).abs()
    assert difference.max() <= level * 1.01
    assert (difference < level / 100).float().mean() >= 0.99


def test_call_gives_what_the_model_takes(clip: Clip, processor: VideoInputs) -> None:
    question = clip.questions[0]
    inputs = processor(clip.path, question.question, OPTIONS)
    assert inputs["video_grid_thw"].tolist() == [[32, 2, 2]]
    assert inputs["pixel_values_videos"].shape == (128, 3 * 2 * 8 * 8)
    assert inputs["second_per_grid_ts"].tolist() == [1.0]
    assert int((inputs["mm_token_type_ids"] == 2).sum()) == 32
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert question.question in text
    assert "evidence" in text
    zoomed = processor(clip.path, question.question, OPTIONS, spans=[(4.0, 9.0)])
    assert zoomed["video_grid_thw"].tolist() == [[2, 8, 8]]
    assert zoomed["second_per_grid_ts"].tolist() == pytest.approx([2.5])
    assert "evidence" not in processor.tokenizer.decode(zoomed["input_ids"][0])


def test_seen_frames_undo_the_patches(clip: Clip, processor: VideoInputs) -> None:
    with open_video(clip.path) as video:
        plan = processor.plan(video, [(2.0, 6.0)])
        seen = processor.seen_frames(processor.read(video, plan))
        frames, _ = video.frames_at(plan.timestamps)
    assert torch.equal(seen, frames)


def test_no_span_means_the_whole_video(clip: Clip, processor: VideoInputs) -> None:
    with open_video(clip.path) as video:
        plan = processor.plan(video, [])
    assert plan.size == (64, 64)
    assert max(plan.timestamps) - min(plan.timestamps) > 16


def test_a_share_of_the_zoom_can_show_the_rest_of_the_video(clip: Clip, processor: VideoInputs) -> None:
    span = (4.0, 9.0)
    zoom = dataclasses.replace(processor.settings.zoom, max_frames=16, context_fraction=0.25)
    settings = dataclasses.replace(processor.settings, zoom=zoom)
    mixed = VideoInputs(processor.tokenizer, settings, processor.geometry)
    with open_video(clip.path) as video:
        plans = [mixed.plan(video, [span]), mixed.plan(video, [span], context_fraction=0.0), mixed.plan(video, [])]
        plans.append(processor.plan(video, [span], context_fraction=0.5))
        with pytest.raises(ValueError, match="context_fraction needs spans to zoom into"):
            mixed.plan(video, context_fraction=0.5)
    outside = [sum(not span[0] <= time <= span[1] for time in plan.timestamps) for plan in plans]
    counts = [len(plan.timestamps) for plan in plans]
    assert (outside[0], outside[1], outside[3]) == (round(0.25 * counts[0]), 0, counts[3] // 2)
    assert outside[0] > 0
    assert all(plan.num_tokens <= zoom.budget_tokens for plan in plans)


def test_smuggled_special_tokens_are_refused(clip: Clip, processor: VideoInputs) -> None:
    with pytest.raises(ValueError, match=r"must not contain the special token <\|video_pad\|>"):
        processor(clip.path, "what <|video_pad|>?", OPTIONS)
    with pytest.raises(ValueError, match=r"must not contain the special token <\|im_end\|>"):
        processor(clip.path, "what?", ("A", "<|im_end|>"))


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("  ", OPTIONS, "question must not be empty"),
        ("what?", (), "options must be 2 to 8 texts, got 0"),
        ("what?", tuple("ABCDEFGHI"), "options must be 2 to 8 texts, got 9"),
    ],
)
def test_bad_questions_are_refused(
    clip: Clip, processor: VideoInputs, question: str, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(clip.path, question, options)


def test_span_outside_the_clip_is_refused(clip: Clip, processor: VideoInputs) -> None:
    with pytest.raises(ValueError, match="span"):
        processor(clip.path, "what?", OPTIONS, spans=[(40.0, 50.0)])


def test_template_text_cannot_reach_attributes() -> None:
    prompts = Prompts(coarse="{question.__class__} $question")
    text = prompts.around_video(Inquiry("$options?", ("x", "y"), 1.0), zoomed=False)
    assert text == ("", "{question.__class__} $options?")


def test_video_stands_where_the_template_says() -> None:
    prompts = Prompts(coarse="$question$video$options")
    inquiry = Inquiry("$video?", ("x", "y"), 1.0)
    assert prompts.around_video(inquiry, zoomed=False) == ("$video?", "(A) x\n(B) y")


def test_settings_survive_saving_and_bad_files_are_refused(tmp_path: Path) -> None:
    assert ZoomSettings.load(tmp_path) == ZoomSettings()
    settings = ZoomSettings(coarse=PassSettings(budget_tokens=70), prompts=Prompts.direct())
    settings.save(tmp_path)
    assert ZoomSettings.load(tmp_path) == settings
    (tmp_path / "zoomzero.json").write_text("not json")
    with pytest.raises(ValueError, match="not valid settings"):
        ZoomSettings.load(tmp_path)
    with pytest.raises(ValueError, match=r"context_fraction must be in \[0, 1\), got 1"):
        PassSettings(budget_tokens=70, context_fraction=1)
    with pytest.raises(ValueError, match=r"the coarse pass sees the whole video .* got 0\.5"):
        ZoomSettings(coarse=PassSettings(budget_tokens=70, context_fraction=0.5))


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(ValueError, match="must be of a family among qwen2_vl, qwen2_5_vl, qwen3_vl, got qwen2"):
        load_processor(tmp_path)


def test_carried_checkpoint_has_the_tiny_settings() -> None:
    assert load_processor(tiny_checkpoint()).settings == tiny_processor().settings


def test_a_frame_choice_is_one_of_two() -> None:
    with pytest.raises(ValueError, match=r"frame_choice must be one of \('exact', 'keyframes'\), got 'fast'"):
        PassSettings(budget_tokens=7, frame_choice="fast")
