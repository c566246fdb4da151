"""Chat templates are found where transformers finds them; the tokens that end a response are all that are named."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, GenerationConfig, PreTrainedTokenizerFast

from zoomzero.inputs import Shown, VideoInputs, load_processor
from zoomzero.models import load_model
from zoomzero.models.tokens import VIDEO_PAD, end_token_ids, load_tokenizer
from zoomzero.prompts import Inquiry
from zoomzero.responses import token_segments
from zoomzero.rollouts import Rollouts
from zoomzero.synthetic import tiny_checkpoint, tiny_model, tiny_processor, tiny_tokenizer

TEXT_ONLY = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny checkpoint without any chat template."""
    shutil.copytree(tiny_checkpoint(), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "chat_template.jinja").unlink()
    return tmp_path / "checkpoint"


def _change_json(file: Path, **changes: object) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**data, **changes}))


def _template() -> str:
    return str(tiny_tokenizer().chat_template).replace("<|im_start|>", "<|im_start|>here ")


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "processor", "tokenizer"])
def test_the_template_is_found_in_every_place(folder: Path, place: str) -> None:
    if place == "chat_template.jinja":
        (folder / place).write_text(_template())
    elif place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": _template()}))
    else:
        _change_json(folder / f"{place}_config.json", chat_template=_template())
    processor = load_processor(folder)
    inquiry = Inquiry("which?", ("a", "b"), duration=2.0)
    ids = processor.text_inputs(inquiry, [Shown(2, (0.5,))], zoomed=False)["input_ids"][0]
    assert "here user" in processor.tokenizer.decode(ids)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "processor"])
def test_the_processors_template_comes_before_the_tokenizers_text_only_one(folder: Path, place: str) -> None:
    _change_json(folder / "tokenizer_config.json", chat_template=TEXT_ONLY)
    if place == "processor":
        _change_json(folder / "processor_config.json", chat_template=_template())
    else:
        text = _template() if place.endswith("jinja") else json.dumps({"chat_template": _template()})
        (folder / place).write_text(text)
    assert "here user" in str(
        load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    )


def test_the_template_that_was_found_is_saved_with_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    _change_json(folder / "processor_config.json", chat_template=_template())
    load_processor(folder).save_pretrained(tmp_path / "saved")
    shutil.copy(folder / "config.json", tmp_path / "saved")
    assert load_processor(tmp_path / "saved").tokenizer.chat_template == _template()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEXT_ONLY, r"must give one <\|video_pad\|> for a video part, got 0 in"),
        ("{{ messages[0]['content'] + 'x' }}", "must take text and video parts, got one that fails on them: "),
        ("{{ raise_exception('text only') }}", "got one that fails on them: text only"),
        (VIDEO_PAD * 2, r"must give one <\|video_pad\|> for a video part, got 2 in"),
    ],
)
def test_text_only_templates_are_refused_at_loading(folder: Path, template: str, message: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        load_processor(folder)


def test_a_checkpoint_without_a_template_is_refused_at_loading(folder: Path) -> None:
    with pytest.raises(ValueError, match="must have a chat template, got none; use a Qwen-VL checkpoint"):
        load_processor(folder)


def test_a_tokenizer_without_the_video_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    plain = copy.deepcopy(tokenizer)
    plain.get_vocab = lambda: {"a": 0}
    with pytest.raises(ValueError, match=r"must have the token <\|video_pad\|>, got one without"):
        VideoInputs(plain)


@pytest.mark.parametrize(
    ("named", "own", "expected"),
    [
        (2, 2, (2,)),
        (7, 2, (7, 2)),
        ([7, 2, 9], 2, (7, 2, 9)),
        ([7], 2, (7, 2)),
        (None, 2, (2,)),
        (7, None, (7,)),
    ],
)
def test_end_tokens_are_all_that_are_named(named: object, own: int | None, expected: tuple[int, ...]) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=named)
    tokenizer.eos_token_id = own
    assert end_token_ids(model, tokenizer) == expected


def test_a_checkpoint_without_end_tokens_is_refused() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config = GenerationConfig()
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="must say which token ends a response, got none"):
        end_token_ids(model, tokenizer)


def test_ids_outside_the_tokenizer_decode_to_nothing() -> None:
    """Published models have more embeddings than their tokenizers have tokens."""
    tokenizer = tiny_tokenizer()
    inside = tokenizer("<answer>B</answer>", add_special_tokens=False).input_ids
    first, second = len(tokenizer), len(tokenizer) + 700
    ids = [first, *inside[:1], second, *inside[1:], first]
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    rollouts = Rollouts(torch.tensor([ids]), mask, torch.zeros(1, len(ids)), torch.tensor([True]))
    assert rollouts.texts(tokenizer) == ["<answer>B</answer>"]
    plain = token_segments(inside, tokenizer).tolist()
    padded = token_segments(ids, tokenizer).tolist()
    assert [padded[place] for place in (1, 3, 4)] == plain


def test_other_tools_load_what_is_saved(tmp_path: Path) -> None:
    """transformers' AutoProcessor gives our patch layout, statistics, template and tokens."""
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert isinstance(processor.tokenizer, PreTrainedTokenizerFast)
    geometry = tiny_processor().geometry
    for part in (processor.image_processor, processor.video_processor):
        assert (part.patch_size, part.merge_size, part.temporal_patch_size) == (8, 2, 2)
        assert tuple(part.image_mean) == geometry.mean
    frames = torch.randint(0, 256, (4, 3, 32, 48), dtype=torch.uint8)
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=[text], videos=[frames], do_resize=False, do_sample_frames=False, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert int((inputs["input_ids"] == tiny_model().config.video_token_id).sum()) == 12
    loaded = load_processor(tmp_path)
    assert (loaded.geometry, loaded.settings) == (geometry, tiny_processor().settings)
    assert load_model(tmp_path, "cpu").config.video_token_id == loaded.video_token_id
