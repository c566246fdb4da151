"""What a checkpoint's tokenizer must say: a template with a place for a video, the tokens that end a response."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VIDEO_PAD = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"


def load_tokenizer(path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer with the chat template that transformers' processor would take.

    That is chat_template.jinja (or .json), else the processor's own, else the tokenizer's: published checkpoints keep
    the one with video parts in any of these.

    Args:
        path: checkpoint folder or hub name.

    Raises:
        ValueError: there is no template, or one without a place for a video.
    """
    from transformers import AutoTokenizer, ProcessorMixin

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    settings, _ = ProcessorMixin.get_processor_dict(path)
    tokenizer.chat_template = settings.get("chat_template") or tokenizer.chat_template
    require_video_token(tokenizer)
    require_video_template(tokenizer)
    return tokenizer


def require_video_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError unless the tokenizer has the token that stands for a visual feature."""
    if VIDEO_PAD not in tokenizer.get_vocab():
        raise ValueError(
            f"VideoInputs: the tokenizer must have the token {VIDEO_PAD}, got one without; use a Qwen-VL checkpoint's"
        )


def require_video_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError unless the tokenizer has a chat template that gives one video token per video part."""
    from jinja2 import TemplateError

    remedy = "use a Qwen-VL checkpoint with its own processor or tokenizer files"
    if not tokenizer.chat_template:
        raise ValueError(f"zoomzero: the tokenizer must have a chat template, got none; {remedy}")
    message: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "text"}, {"type": "video"}]}
    try:
        rendered = str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError) as error:
        raise ValueError(
            f"zoomzero: the chat template must take text and video parts, got one that fails on them: {error}; {remedy}"
        ) from error
    if rendered.count(VIDEO_PAD) != 1:
        raise ValueError(
            f"zoomzero: the chat template must give one {VIDEO_PAD} for a video part, got "
            f"{rendered.count(VIDEO_PAD)} in {rendered!r:.80}; {remedy}"
        )


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response: those of the generation config and the tokenizer's own, in order, each once.

    Raises:
        ValueError: neither names one.
    """
    named = model.generation_config.eos_token_id
    ids = [*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id]
    found = tuple(dict.fromkeys(token for token in ids if token is not None))
    if not found:
        raise ValueError(
            "zoomzero: the checkpoint must say which token ends a response, got none from its generation config and "
            "its tokenizer; set eos_token_id in generation_config.json"
        )
    return found
