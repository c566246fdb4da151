"""`zoomzero doctor --model`: what a checkpoint says of itself, and whether it answers as in transformers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoomzero.models.checkup import Finding, examine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_CLIPS = 4  # of two questions each
NUM_TOKENS = 32
# Largest difference of a log-probability that rounding explains, by the bytes of a weight.
TOLERANCE = {4: 1e-3, 2: 0.25}


def check_model(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """The checkpoint's facts, then eight greedy responses on synthetic clips against transformers' own forward."""
    findings = list(examine(path))
    yield from findings
    if all(finding.is_right for finding in findings):
        yield _answers(path)


@torch.no_grad()
def _answers(path: str | os.PathLike[str]) -> Finding:
    from zoomzero.answering.engine import ZoomZero
    from zoomzero.models.encoding import encode_prompts
    from zoomzero.models.tokens import end_token_ids
    from zoomzero.rollouts import SamplingOptions
    from zoomzero.rollouts.shared_prompt import generate
    from zoomzero.synthetic import make_clips

    engine = ZoomZero.from_pretrained(path)
    model, tokenizer = engine.model, engine.processor.tokenizer
    ends = end_token_ids(model, tokenizer)
    options = SamplingOptions(NUM_TOKENS, ends, ends[0], temperature=0.0)
    with tempfile.TemporaryDirectory() as folder:
        prompts: list[Mapping[str, Tensor]] = [
            engine.processor(clip.path, question.question, question.options)
            for clip in make_clips(folder, NUM_CLIPS, seed=0)
            for question in clip.questions
        ]
    rollouts = [generate(model, encode_prompts(model, [prompt]), options) for prompt in prompts]
    # The vision tower's own attention, too: one call per frame or window.
    current = model.config._attn_implementation
    model.set_attn_implementation({"": current, "text_config": current, "vision_config": current})
    largest, num_tokens = 0.0, 0
    tolerance = TOLERANCE[model.dtype.itemsize]
    for number, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True), 1):
        keep = rollout.mask[0]
        tokens = rollout.token_ids[0][keep]
        logps = _own_logps(model, prompt, tokens)
        chosen = logps.gather(-1, tokens[:, None])[:, 0]
        largest = max(largest, float((chosen - rollout.logps[0][keep]).abs().max()))
        num_tokens += len(tokens)
        behind = float((logps.max(-1).values - chosen).max())
        if max(largest, behind) > tolerance:
            found = (
                f"response {number} must be that of transformers' own forward at the published positions, got "
                f"log-probabilities {largest:.2g} apart and a token {behind:.2g} below the likeliest; report it "
                "with the versions above"
            )
            return Finding("answers", found, is_right=False)
    return Finding(
        "answers",
        f"{len(prompts)} greedy responses ({num_tokens} tokens) equal those of transformers' own forward at the "
        f"published positions; log-probabilities at most {largest:.1g} apart",
    )


def _own_logps(model: PreTrainedModel, prompt: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Log-probabilities float32 [T, V] of the response's tokens from one plain forward over prompt and response."""
    from zoomzero.models.positions import mrope_positions

    device = model.device
    row = torch.cat((prompt["input_ids"].to(device), tokens[None]), dim=1)
    types = torch.cat((prompt["mm_token_type_ids"].to(device), torch.zeros_like(tokens)[None]), dim=1)
    positions, _ = mrope_positions(model.config, {**prompt, "input_ids": row, "mm_token_type_ids": types})
    outputs = model(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        mm_token_type_ids=types,
        position_ids=positions[:, None],
        pixel_values_videos=prompt["pixel_values_videos"].to(device, model.dtype),
        video_grid_thw=prompt["video_grid_thw"].to(device),
        use_cache=False,
    )
    logits: Tensor = outputs.logits[0, prompt["input_ids"].shape[1] - 1 : -1]
    return logits.float().log_softmax(-1)
