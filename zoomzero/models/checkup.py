"""What a checkpoint says of itself, fact by fact, before any of its weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from zoomzero.models.base import Family
from zoomzero.models.families import family_of
from zoomzero.models.loading import checkpoint_file
from zoomzero.models.positions import mrope_positions
from zoomzero.models.tokens import VIDEO_PAD, VISION_END, VISION_START, end_token_ids, load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One fact about a checkpoint."""

    what: str
    """What was looked at."""
    found: str
    """What it is, or what is wrong with it and the remedy."""
    is_right: bool = True
    """Whether the checkpoint can be used as far as this goes."""


def examine(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """Family, tokens, template, end tokens, positions and memory of a checkpoint; ends where nothing more can be said.

    path: checkpoint folder or hub name.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
        family = family_of(config)
    except (OSError, ValueError) as error:
        yield Finding("family", str(error), is_right=False)
        return
    yield Finding("family", f"{family.model_type} ({family.class_name})")
    try:
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError) as error:
        yield Finding("tokenizer", str(error), is_right=False)
        return
    yield _tokens(config, tokenizer)
    yield Finding("chat template", "takes text and video parts")
    model = _empty(family, config, path)
    try:
        ids = end_token_ids(model, tokenizer)
        yield Finding("end tokens", ", ".join(f"{token} {tokenizer.convert_ids_to_tokens(token)}" for token in ids))
    except ValueError as error:
        yield Finding("end tokens", str(error), is_right=False)
    yield _positions(config, model)
    yield _memory(config, model)


def _tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Special tokens as the tokenizer numbers them and as the config says."""
    vocabulary = tokenizer.get_vocab()
    wanted = {
        VIDEO_PAD: config.video_token_id,
        VISION_START: config.vision_start_token_id,
        VISION_END: getattr(config, "vision_end_token_id", None),
    }
    for token, number in wanted.items():
        if number is not None and vocabulary.get(token) != number:
            remedy = "use the tokenizer files that belong to the config"
            found = f"{token} must be token {number} as the config says, got {vocabulary.get(token)}; {remedy}"
            return Finding("special tokens", found, is_right=False)
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size:
        found = f"the model must have an embedding per token, got {size} for {len(tokenizer)}; resize its embeddings"
        return Finding("special tokens", found, is_right=False)
    return Finding("special tokens", f"{VIDEO_PAD} {vocabulary[VIDEO_PAD]}; {len(tokenizer)} tokens, {size} embeddings")


def _empty(family: Family, config: PretrainedConfig, path: str | os.PathLike[str]) -> PreTrainedModel:
    """The model without storage for its weights, with its generation config."""
    from transformers import GenerationConfig

    with torch.device("meta"):
        model: PreTrainedModel = family.model_class()(config)
    if checkpoint_file(path, "generation_config.json") is not None:
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def _positions(config: PretrainedConfig, model: PreTrainedModel) -> Finding:
    """The published rule's text after a video, and where the installed transformers starts it."""
    merge, steps = config.vision_config.spatial_merge_size, 32
    start, end = config.vision_start_token_id, getattr(config, "vision_end_token_id", 0)
    block = [start, config.video_token_id, end]
    per_step = family_of(config).times_in_prompt
    ids = block * steps if per_step else [start, *[config.video_token_id] * steps, end]
    row = torch.tensor([ids])
    inputs: dict[str, Any] = {
        "input_ids": row,
        "mm_token_type_ids": (row == config.video_token_id).long() * 2,
        "video_grid_thw": torch.tensor([[steps, merge, merge]]),
    }
    if family_of(config).seconds_in_positions:
        inputs["second_per_grid_ts"] = torch.tensor([1.0])
    ours, _ = mrope_positions(config, inputs)
    theirs, _ = model.model.get_rope_index(**inputs)
    place = f"text after {steps} one-token steps starts at {int(ours[0, -1])}"
    if torch.equal(ours, theirs[:, 0]):
        return Finding("positions", f"{place}, as in the installed transformers")
    return Finding("positions", f"{place} as published; the installed transformers would say {int(theirs[0, 0, -1])}")


def _memory(config: PretrainedConfig, model: PreTrainedModel) -> Finding:
    """Bytes of the weights, and of a prompt's keys and values per thousand tokens."""
    text = config.get_text_config()
    count = sum(parameter.numel() for parameter in model.parameters())
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * width * 1000
    parts = [
        f"{count / 1e6:,.1f} M parameters",
        f"weights {count * 2 / GIB:.2f} GiB in bfloat16, {count * 4 / GIB:.2f} in float32",
        f"keys and values {cached * 2 / GIB:.3f} GiB in bfloat16 per 1,000 tokens",
        f"training with AdamW in float32 {count * 16 / GIB:.2f} GiB before activations",
    ]
    return Finding("memory", "; ".join(parts))
