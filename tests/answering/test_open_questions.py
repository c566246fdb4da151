"""Open questions are answered in words, eight options by letter; what passes cost, against torch's own count."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoomzero import ZoomZero
from zoomzero.answering.answer import AnswerOptions, Query
from zoomzero.answering.backends import local
from zoomzero.answering.cost import text_flops, vision_flops
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.looks import through_tower
from zoomzero.looks.encoder import PromptEncoder
from zoomzero.looks.rows import RowEncoder
from zoomzero.models.forward import next_token_logps
from zoomzero.rollouts import Rollouts
from zoomzero.synthetic import make_clips
from zoomzero.synthetic.clips import Clip


def _attention(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    batch, heads, length, dim = query
    return 4 * batch * heads * length * key[2] * dim


def _causal_attention(query: Sequence[int], *_: object, **__: object) -> int:
    batch, heads, length, dim = query
    return 2 * batch * heads * length * (length + 1) * dim


# torch counts products, and of attention kernels none that runs here.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.zoomzero.shared_prefix_attention: _causal_attention,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return make_clips(tmp_path_factory.mktemp("clips"), 1, seed=29)[0]


@pytest.fixture(scope="module")
def engine() -> ZoomZero:
    return ZoomZero.from_pretrained(device="cpu")


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_answers_open_questions(engine: ZoomZero, clip: Clip, strategy: str) -> None:
    answer = engine.answer(clip.path, "Which letter is on the red sign?", strategy=strategy, max_new_tokens=12)
    assert answer.letter is None
    assert all(look.letter is None for look in answer.passes)
    assert 0 <= answer.confidence <= 1
    zooms = [look for look in answer.passes if look.name == "zoom"]
    assert all(look.words == look.text.strip() for look in zooms)
    assert answer.text in [look.words for look in answer.passes]


def test_words_and_their_mean_probability_are_read_from_the_response(
    engine: ZoomZero, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's response is written here, with a probability of one half for each of its tokens."""
    tokenizer = engine.processor.tokenizer
    text = "<answer> a (red) sign </answer>\n<glue>[(2.0, 5.5)]</glue>"
    ids = torch.tensor([[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
    logps = torch.full(ids.shape, 0.5).log()
    rollouts = Rollouts(ids, torch.ones_like(ids, dtype=torch.bool), logps, torch.tensor([True]))
    monkeypatch.setattr(local, "generate", lambda *_: rollouts)
    answer = engine.answer(clip.path, "What is seen?", strategy="single")
    assert (answer.text, answer.letter, answer.spans) == ("a (red) sign", None, ((2.0, 5.5),))
    assert answer.confidence == pytest.approx(0.5)
    again = engine.answer(clip.path, "What is seen?", strategy="coarse_to_fine")
    assert again.text == text
    assert again.spans == ((2.0, 5.5),)


def test_an_empty_element_is_no_answer(engine: ZoomZero, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([engine.processor.tokenizer("<answer> </answer>", add_special_tokens=False).input_ids])
    rollouts = Rollouts(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape), torch.tensor([False]))
    monkeypatch.setattr(local, "generate", lambda *_: rollouts)
    answer = engine.answer(clip.path, "What is seen?", strategy="single")
    assert (answer.text, answer.confidence, answer.passes[0].has_answer) == (None, 0.0, False)


def test_the_text_of_a_letter_is_its_option_and_eight_can_be_told_apart(engine: ZoomZero, clip: Clip) -> None:
    options = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    answer = engine.answer(clip.path, "Which letter is on the red sign?", options, max_new_tokens=40)
    assert answer.letter is not None
    assert answer.text == options["ABCDEFGH".index(answer.letter)]
    tokenizer = engine.processor.tokenizer
    assert all(len(tokenizer(letter, add_special_tokens=False).input_ids) == 1 for letter in "ABCDEFGH")


def test_a_letter_of_several_tokens_is_refused(engine: ZoomZero, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoomzero.prompts.OPTION_LETTERS", ("(A", "B"))
    with pytest.raises(ValueError, match=r"an option's letter must be one token, got 2 for '\(A'"):
        engine.answer(clip.path, "Which?", ("x", "y"), max_new_tokens=2)


def test_questions_on_one_video_read_and_encode_its_first_pass_once(
    engine: ZoomZero, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    towered = PromptEncoder._towered

    def counted(self: PromptEncoder, read: list) -> list:
        encoded.append(len(read))
        return towered(self, read)

    monkeypatch.setattr(PromptEncoder, "_towered", counted)
    queries = [Query(clip.path, f"Which letter is on the {name} sign?", tuple("ABCD")) for name in ("red", "blue")]
    engine.answer_batch(queries, AnswerOptions("single", max_new_tokens=4))
    assert encoded == [1]


def test_passes_come_as_they_are_made(engine: ZoomZero, clip: Clip) -> None:
    queries = [Query(clip.path, f"Which letter is on the {name} sign?", tuple("ABCD")) for name in ("red", "blue")]
    came: list[tuple[int, str]] = []
    answers = engine.answer_batch(
        queries, AnswerOptions(max_new_tokens=40), lambda place, look: came.append((place, look.name))
    )
    assert came == [(0, "coarse"), (1, "coarse"), (0, "zoom"), (1, "zoom")]
    for answer in answers:
        assert answer.cost == tuple(look.cost for look in answer.passes)
        total = answer.total_cost
        assert total.visual_tokens == sum(cost.visual_tokens for cost in answer.cost) == 64
        assert total.seconds == pytest.approx(sum(answer.timings.values()), rel=1e-6)


def test_operations_by_formula_are_those_torch_counts(engine: ZoomZero, clip: Clip, tmp_path: Path) -> None:
    """Coarse (window attention in odd grids included) and zoomed prompts, through tower and language model."""
    encoder = RowEncoder(
        engine.processor, engine.model, freeze_vision=False, feature_bytes=1 << 20, frame_bytes=1 << 20
    )
    row = {"video": str(clip.path), "question": "Which letter?", "options": ["A", "B"]}
    for look in (encoder.coarse_look(row), encoder.zoom_look(row, [(2.0, 6.0)])):
        (prompt,) = encoder.prepare([look])
        assert not isinstance(prompt, Exception)
        with torch.no_grad():
            with FlopCounterMode(display=False, custom_mapping=ATTENTION) as tower:
                encoded = through_tower(engine.model, [prompt])
            with FlopCounterMode(display=False, custom_mapping=ATTENTION) as text:
                next_token_logps(engine.model, encoded)
        steps, rows, columns = (int(side) for side in prompt.grid_thw[0])
        formula = vision_flops(engine.model.config, (steps, rows, columns))
        assert formula == pytest.approx(tower.get_total_flops(), rel=0.005)
        formula = text_flops(engine.model.config, prompt.input_ids.numel(), 1)
        assert formula == pytest.approx(text.get_total_flops(), rel=0.005)
