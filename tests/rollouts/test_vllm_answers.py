"""The tiny checkpoint answers in vLLM as it does here: equal tokens, log-probabilities within 1e-5.

vLLM loads the checkpoint as any other tool would, computes its own positions and runs its own model. It is handed
either the features that our vision tower computed or the frames that it saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.vllm_engine import import_vllm
from torch import Tensor

from zoomzero import ZoomZero
from zoomzero.models.encoding import encode_prompts
from zoomzero.models.tokens import end_token_ids
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.synthetic import make_clips, tiny_checkpoint
from zoomzero.video import open_video

vllm = import_vllm()

MAX_NEW_TOKENS = 40


class Asked(NamedTuple):
    """A prompt as vLLM takes it in both ways, and our greedy response to it with its log-probabilities."""

    features: dict[str, Any]
    frames: dict[str, Any]
    tokens: list[int]
    logps: Tensor


@pytest.fixture(scope="module")
def engine() -> ZoomZero:
    return ZoomZero.from_pretrained(tiny_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def llm() -> Any:
    return vllm.LLM(
        model=str(tiny_checkpoint()),
        dtype="float32",
        max_model_len=512,
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
    ids = inputs["input_ids"][0].tolist()
    first, count = ids.index(processor.video_token_id), ids.count(processor.video_token_id)
    # vLLM wants one placeholder per video and repeats it itself.
    short = [*ids[: first + 1], *ids[first + count :]]
    features = {
        "video_embeds": prompts[0].features,
        "video_grid_thw": inputs["video_grid_thw"],
        "second_per_grid_ts": inputs["second_per_grid_ts"],
    }
    frames = processor.seen_frames(read).numpy()
    fps = processor.geometry.temporal_patch_size / float(inputs["second_per_grid_ts"])
    metadata = {
        "fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps,
        "frames_indices": list(range(len(frames))), "do_sample_frames": False,
    }  # fmt: skip
    return Asked(
        {"prompt_token_ids": short, "multi_modal_data": {"video": features}},
        {
            "prompt_token_ids": short,
            "multi_modal_data": {"video": (frames, metadata)},
            "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False},
        },
        ours.token_ids[0][ours.mask[0]].tolist(),
        ours.logps[0][ours.mask[0]],
    )


@pytest.mark.parametrize("form", ["features", "frames"])
def test_greedy_answers_equal_vllms(engine: ZoomZero, llm: Any, asked: list[Asked], form: str) -> None:
    sampling = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=MAX_NEW_TOKENS,
        logprobs=0,
        stop_token_ids=list(end_token_ids(engine.model, engine.processor.tokenizer)),
    )
    outputs = llm.generate([getattr(item, form) for item in asked], sampling, use_tqdm=False)
    written = 0
    for item, output in zip(asked, outputs, strict=True):
        theirs = output.outputs[0]
        assert list(theirs.token_ids) == item.tokens
        logps = torch.tensor([step[token].logprob for step, token in zip(theirs.logprobs, item.tokens, strict=True)])
        torch.testing.assert_close(item.logps, logps, rtol=0, atol=1e-5)
        written += len(item.tokens)
    assert written > 150
