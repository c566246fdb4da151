"""The tiny checkpoint answers in vLLM as it does here: equal tokens, log-probabilities within 1e-5.

vLLM loads the checkpoint as any other tool would, computes its own positions and runs its own model. It is handed
either the features that our vision tower computed or the frames that it saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.small_families import FAMILY_NAMES, save_small_checkpoint
from support.vllm_engine import import_vllm
from torch import Tensor

from zoomzero import ZoomZero
from zoomzero.inputs import VideoInputs
from zoomzero.models.encoding import encode_prompts
from zoomzero.models.tokens import VISION_END, VISION_START, end_token_ids
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.synthetic import make_clips, tiny_checkpoint
from zoomzero.video import open_video

vllm = import_vllm()

MAX_NEW_TOKENS = 40


class Asked(NamedTuple):
    """A prompt as vLLM takes it in both ways, its ids, and our greedy response to it with its log-probabilities."""

    ids: list[int]
    features: dict[str, Any]
    frames: dict[str, Any]
    tokens: list[int]
    logps: Tensor


@pytest.fixture(scope="module", params=["the tiny checkpoint", "qwen2_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained tiny checkpoint (Qwen2.5-VL), and random small ones of the other families."""
    if request.param not in FAMILY_NAMES:
        return tiny_checkpoint()
    return save_small_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(folder: Path) -> ZoomZero:
    return ZoomZero.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Any:
    return vllm.LLM(
        model=str(folder),
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        limit_mm_per_prompt={"video": 1, "image": 0},
        skip_mm_profiling=True,
        enable_mm_embeds=True,
        seed=0,
    )


@pytest.fixture(scope="module")
def asked(engine: ZoomZero, tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """Both questions of three clips, as the coarse pass asks them and as the zoom pass does."""
    clips = make_clips(tmp_path_factory.mktemp("clips"), 3, seed=11)
    return [
        _asked(engine, clip.path, question, spans)
        for clip in clips
        for question in clip.questions
        for spans in (None, question.spans)
    ]


@torch.no_grad()
def _asked(engine: ZoomZero, path: Path, question: Any, spans: Any) -> Asked:
    processor = engine.processor
    with open_video(path) as video:
        read = processor.read(video, processor.plan(video, spans))
        inputs = processor(video, question.question, question.options, spans=spans)
    prompts = encode_prompts(engine.model, [inputs])
    ends = end_token_ids(engine.model, processor.tokenizer)
    ours = generate(engine.model, prompts, SamplingOptions(MAX_NEW_TOKENS, ends, 0, temperature=0.0))
    short = _with_one_placeholder(inputs["input_ids"][0].tolist(), processor)
    features = {"video_embeds": prompts[0].features, "video_grid_thw": inputs["video_grid_thw"]}
    if "second_per_grid_ts" in inputs:
        features["second_per_grid_ts"] = inputs["second_per_grid_ts"]
    if processor.geometry.times_in_prompt:
        features["timestamps"] = [list(read.times)]
    frames = processor.seen_frames(read).numpy()
    fps = processor.geometry.temporal_patch_size / float(read.second_per_grid_ts)
    metadata = {
        "fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps,
        "frames_indices": list(range(len(frames))), "do_sample_frames": False,
    }  # fmt: skip
    return Asked(
        inputs["input_ids"][0].tolist(),
        {"prompt_token_ids": short, "multi_modal_data": {"video": features}},
        {
            "prompt_token_ids": short,
            "multi_modal_data": {"video": (frames, metadata)},
            "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False},
        },
        ours.token_ids[0][ours.mask[0]].tolist(),
        ours.logps[0][ours.mask[0]],
    )


def _with_one_placeholder(ids: list[int], processor: VideoInputs) -> list[int]:
    """What vLLM wants: one placeholder per video, which it repeats, and labels with times, itself."""
    first = ids.index(processor.video_token_id)
    last = len(ids) - 1 - ids[::-1].index(processor.video_token_id)
    if processor.geometry.times_in_prompt:
        # Within the template's own pair of vision tokens, which stays.
        start, end = (processor.tokenizer.convert_tokens_to_ids(token) for token in (VISION_START, VISION_END))
        first, last = ids.index(start) + 1, len(ids) - 2 - ids[::-1].index(end)
    return [*ids[:first], processor.video_token_id, *ids[last + 1 :]]


@pytest.mark.parametrize("form", ["features", "frames"])
def test_greedy_answers_equal_vllms(engine: ZoomZero, llm: Any, asked: list[Asked], form: str) -> None:
    sampling = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=MAX_NEW_TOKENS,
        logprobs=0,
        stop_token_ids=list(end_token_ids(engine.model, engine.processor.tokenizer)),
    )
    if form == "frames" and engine.processor.geometry.times_in_prompt:
        pytest.skip("vLLM 0.32 calls Qwen3-VL's processor without its videos, which transformers 5.23 refuses")
    outputs = llm.generate([getattr(item, form) for item in asked], sampling, use_tqdm=False)
    written = 0
    for item, output in zip(asked, outputs, strict=True):
        assert output.prompt_token_ids == item.ids
        theirs = output.outputs[0]
        assert list(theirs.token_ids) == item.tokens
        logps = torch.tensor([step[token].logprob for step, token in zip(theirs.logprobs, item.tokens, strict=True)])
        torch.testing.assert_close(item.logps, logps, rtol=0, atol=1e-5)
        written += len(item.tokens)
    assert written > 150
