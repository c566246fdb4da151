"""The synthetic clips are real, deterministic files, and show what their annotations say."""

import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest

from zoomzero.annotations import load_annotations
from zoomzero.synthetic import make_clips, tiny_checkpoint, tiny_model, tiny_processor, tiny_tokenizer
from zoomzero.synthetic.render import COLOURS, SIGN_SIDE
from zoomzero.video import open_video


def test_files_are_h264_of_the_asked_size(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, 1, seed=3, size=128, fps=5)[0]
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height, stream.average_rate) == (128, 128, 5)
        assert sum(1 for _ in container.decode(video=0)) == 160


def test_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    first = make_clips(tmp_path / "one", 3, seed=1, workers=1)
    second = make_clips(tmp_path / "two", 4, seed=1, workers=2)
    assert [clip.path.name for clip in first] == [clip.path.name for clip in second[:3]]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(first, second, strict=False))
    assert make_clips(tmp_path / "three", 1, seed=2)[0].path.name != first[0].path.name


def test_existing_files_are_not_made_again(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, 1)[0]
    clip.path.write_bytes(b"kept")
    calls: list[int] = []
    make_clips(tmp_path, 1, on_progress=lambda done, total: calls.append(done))
    assert clip.path.read_bytes() == b"kept"
    assert not calls


def test_signs_are_shown_in_their_intervals_and_only_there(tmp_path: Path) -> None:
    """The middle of a sign has its colour inside the interval: channel differences tell it from the grey world."""
    for clip in make_clips(tmp_path, 3, seed=9):
        with open_video(clip.path) as video:
            frames, starts = video.frames_at(video.timestamps)
        for sign in clip.spec.signs:
            # The rim of the sign: no letter there.
            rim = (
                frames[:, sign.y + 1 : sign.y + 3, sign.x + 3 : sign.x + SIGN_SIDE - 3].float().mean(dim=(1, 2)).numpy()
            )
            wanted = np.array(COLOURS[sign.colour][1 if sign.dark_letter else 0])
            close = np.abs(rim - wanted).max(axis=1) < 40
            (start, end) = sign.intervals[0]
            inside = (starts >= start) & (starts < end)
            assert close[inside].all()
            assert close[~inside].mean() < 0.05
            assert 3 <= end - start <= 8


def test_hard_set_has_several_disjoint_spans_a_question(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, 1, seed=4, duration=120, appearances=(2, 3))[0]
    assert all(2 <= len(question.spans) <= 3 for question in clip.questions)
    spans = sorted(span for question in clip.questions for span in question.spans)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(spans))
    assert spans[-1][1] <= 120


def test_annotations_are_read_back_as_questions(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, 2)
    samples = load_annotations(tmp_path / "annotations.json")
    questions = [question for clip in clips for question in clip.questions]
    assert [(s.question, s.options, s.answer, s.spans) for s in samples] == [
        (q.question, q.options, q.answer, q.spans) for q in questions
    ]
    row = json.loads((tmp_path / "annotations.json").read_text())[0]
    assert row["options"] == ["(A) A", "(B) B", "(C) C", "(D) D"]
    assert row["answer"] == f"({questions[0].answer})"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"size": 100}, "size must be a positive multiple of 64, got 100"),
        ({"fps": 2}, "fps must be at least 4, got 2"),
        ({"appearances": (2, 1)}, r"appearances must be .* got \(2, 1\)"),
        ({"appearances": (1, 3)}, "need a duration of at least 96 s, got 32"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_clips(tmp_path, **{"count": 1, **options})


def test_tokenizer_knows_tags_digits_and_any_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "<think> red <time>(12, 17)</time></think>\n<answer>B</answer>\n<glue>[(12, 17), (3.5, 20)]</glue>"
    for sample in (text, "naïve — 漢字 🎬\t\n\n  x", ""):
        assert tokenizer.decode(tokenizer(sample).input_ids) == sample
    tokens = tokenizer.tokenize(text)
    assert {"<answer>", "B", "</answer>", "1", "2", "7"} <= set(tokens)


def test_tiny_model_is_small_deterministic_and_loads_like_any_checkpoint(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from zoomzero import load_processor

    state = torch.random.get_rng_state()
    model, again = tiny_model(seed=1), tiny_model(seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert 400_000 < sum(value.numel() for value in model.parameters()) < 600_000
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model.save_pretrained(tmp_path)
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path), load_processor(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert loaded_processor.settings == processor.settings
    assert loaded_processor.geometry == processor.geometry
    assert loaded_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_carried_checkpoint_is_complete_and_says_what_it_reached() -> None:
    """transformers' own tools load it, and its figures come from one run through all stages."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from zoomzero import load_processor

    folder = tiny_checkpoint()
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.video_processor.patch_size == tiny_processor().geometry.patch_size
    assert processor.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert processor.chat_template == load_processor(folder).tokenizer.chat_template == tiny_tokenizer().chat_template
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert [(name, value.shape) for name, value in model.named_parameters()] == [
        (name, value.shape) for name, value in tiny_model().named_parameters()
    ]
    figures = json.loads((folder / "figures.json").read_text())
    assert figures.keys() == {
        "colours_read", "letters_read", "miou", "coarse_accuracy", "zoom_accuracy", "cpu_seconds"
    }  # fmt: skip
