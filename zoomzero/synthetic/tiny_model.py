"""The tiny model: transformers' own Qwen2.5-VL classes with half a million parameters, and a from-scratch tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from zoomzero.inputs import VideoInputs
from zoomzero.models.base import VisionGeometry
from zoomzero.models.loading import BUILT_IN
from zoomzero.models.tokens import VIDEO_PAD, VISION_END, VISION_START
from zoomzero.prompts import Prompts
from zoomzero.settings import PassSettings, ZoomSettings

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
IMAGE_PAD = "<|image_pad|>"
TAGS = ("<think>", "</think>", "<time>", "</time>", "<answer>", "</answer>", "<glue>", "</glue>")

# Qwen's chat format: one user turn with text and vision parts, in the order given.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# One token each: option labels, words with their leading space, single digits, single other characters.
_SPLIT = r"\([A-F]\)|\[\(|\)\]|, | ?\p{L}+|\p{N}|\n|\s+|[^\s\p{L}\p{N}]"
_WORDS = (
    "Which letter is on the red green blue sign? (A) A\n(B) B\n(C) C\n(D) D\n(E) E\n(F) F\n"
    "Answer with evidence.\nAnswer with the letter.\nuser assistant system [(1, 2)]"
)


# 32 visual tokens in both passes, a token being 16x16 pixels of two frames: 64 coarse frames of one token, in which a
# sign's colour shows but not its letter, or 4 zoomed frames of 64x64, in which it does.
TINY_SETTINGS = ZoomSettings(
    coarse=PassSettings(budget_tokens=32, sample_fps=2.0, max_frames=64, min_frame_tokens=1),
    zoom=PassSettings(budget_tokens=32, sample_fps=4.0, max_frames=4, min_frame_tokens=1),
    # The question comes first: frames that follow it can be compared with it as they are read.
    prompts=Prompts(
        coarse="$question$video$options\nAnswer with evidence.",
        zoom="$question$video$options\nAnswer with the letter.",
    ),
    # Of 32 tokens none can be spared: the signs are read at full size only.
    kept_share=0.0,
)
TINY_GEOMETRY = VisionGeometry(patch_size=8, merge_size=2, temporal_patch_size=2)


def tiny_checkpoint() -> Path:
    """Folder of the trained start checkpoint that the package carries, made by `zoomzero.demo.train_tiny`."""
    return BUILT_IN


def tiny_processor(tokenizer: PreTrainedTokenizerFast | None = None) -> VideoInputs:
    """The processor that fits `tiny_model`."""
    return VideoInputs(tokenizer or tiny_tokenizer(), TINY_SETTINGS, TINY_GEOMETRY)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer made from scratch: tags, digits, letters and the words of the synthetic questions are
    single tokens, any other text falls back to bytes, so nothing is ever unknown. No hub, no files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, IM_START, IM_END, VISION_START, VISION_END, VIDEO_PAD, IMAGE_PAD]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        show_progress=False,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    # Tags are ordinary text for decoding (skip_special_tokens must keep them), yet one token each.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=IM_END, pad_token=PAD, additional_special_tokens=specials[1:]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(
    tokenizer: PreTrainedTokenizerFast | None = None, *, seed: int = 0
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2_5_VLForConditionalGeneration with about 0.5 M random parameters, float32, on the CPU.

    Language model: hidden 96, 3 layers of 3 heads; vision tower: hidden 48, 2 layers of 3 heads, patches of 8x8 pixels
    and 2 frames, 2x2 merging: a visual token is 16x16 pixels of 2 frames. tokens_per_second is 1, so M-RoPE counts
    seconds; rope_theta 1000 keeps that resolution usable at this size.

    Args:
        tokenizer: whose ids the config takes; `tiny_tokenizer()` unless told.
        seed: of the initialisation; the global random state is left as it was.
    """
    config = _tiny_config(tokenizer or tiny_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = model.config.get_text_config().eos_token_id
    model.generation_config.pad_token_id = model.config.get_text_config().pad_token_id
    return model.eval()


def _tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    vocabulary = tokenizer.get_vocab()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 4096,
        "initializer_range": 0.08,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [8, 4, 4]},
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 128,
        "num_heads": 3,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 64,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 1,
        "out_hidden_size": text["hidden_size"],
        # With the default 0.02 a tower of this width never learns to read.
        "initializer_range": 0.12,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=vocabulary[IMAGE_PAD],
        video_token_id=vocabulary[VIDEO_PAD],
        vision_start_token_id=vocabulary[VISION_START],
        vision_end_token_id=vocabulary[VISION_END],
        tie_word_embeddings=True,
    )
