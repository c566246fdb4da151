"""Parsing responses, and the token sets of responses under tokenizers of every kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zoomzero.responses import ANSWER, MAX_SPANS, REST, SPAN, parse, token_segments

THINK = "<think>A cat at <time>(1.0, 2.0)</time>.</think>"
GOOD = THINK + "\n<answer>B</answer>\n<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"


def test_a_whole_response() -> None:
    response = parse(GOOD)
    assert response.thinking == "A cat at <time>(1.0, 2.0)</time>."
    assert response.answer == "B"
    assert response.spans == [(20.3, 30.8), (41.0, 44.5)]
    assert response.well_formed
    assert response.answer_chars is not None
    assert GOOD[slice(*response.answer_chars)] == "B"
    assert response.span_chars is not None
    assert GOOD[slice(*response.span_chars)] == "[(20.3, 30.8), (41.0, 44.5)]"


def test_nothing_at_all() -> None:
    response = parse("")
    assert (response.thinking, response.answer, response.spans, response.well_formed) == (None, None, [], False)
    assert response.answer_chars is None
    assert response.span_chars is None


def test_without_thinking() -> None:
    response = parse("<answer>(C)</answer>\n<glue>[(1, 2)]</glue>")
    assert (response.thinking, response.answer, response.spans) == (None, "C", [(1.0, 2.0)])
    assert not response.well_formed


def test_thinking_that_the_prompt_opened() -> None:
    response = parse("hm</think><answer>D</answer>")
    assert (response.thinking, response.answer) == ("hm", "D")


def test_tags_quoted_in_the_thinking_do_not_count() -> None:
    response = parse("<think><answer>A</answer><glue>[(1, 2)]</glue></think><answer>B</answer>")
    assert (response.answer, response.spans, response.span_chars) == ("B", [], None)


def test_the_first_of_repeated_elements_counts() -> None:
    response = parse("<answer>A</answer><answer>B</answer><glue>[(1, 2)]</glue><glue>[(3, 4)]</glue>")
    assert (response.answer, response.spans) == ("A", [(1.0, 2.0)])


def test_an_element_that_is_not_closed_does_not_count() -> None:
    response = parse("<think></think><answer>A</answer><glue>[(1.5, 2.5)")
    assert (response.answer, response.spans, response.span_chars) == ("A", [], None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("B", "B"), (" B\n", "B"), ("(B)", "B"), ("( B )", "B"), ("B. a dog", "B. a dog"), ("", ""), ("b", "b")],
)
def test_answers(text: str, answer: str) -> None:
    assert parse(f"<answer>{text}</answer>").answer == answer


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("[]", []),
        (" [(1, 2)] ", [(1.0, 2.0)]),
        ("[(1,2),]", [(1.0, 2.0)]),
        ("[[1, 2]]", [(1.0, 2.0)]),
        ("[(1, 2), [3., .5e1]]", [(1.0, 2.0), (3.0, 5.0)]),
        ("[\n(1.25 , 2)\n,\t(3,4)]", [(1.25, 2.0), (3.0, 4.0)]),
        ("[(-1, 2)]", [(-1.0, 2.0)]),
        ("[(7, 7)]", [(7.0, 7.0)]),
        ("[(5.0, 2.0)]", []),
        ("[(5.0, 2.0), (1, 2)]", [(1.0, 2.0)]),
        ("[(0.30000000000000004, 1)]", [(0.30000000000000004, 1.0)]),
        ("(1, 2)", []),
        ("[(1, 2, 3)]", []),
        ("[(1, 2), (3)]", []),
        ("[(1, 2)(3, 4)]", []),
        ("[(1, 2],]", []),
        ("[(1, 2)", []),
        ("[(1s, 2s)]", []),
        ("1-2", []),
        ("[[(1, 2)]]", []),
        ("[(nan, inf)]", []),
    ],
)
def test_spans(text: str, spans: list[tuple[float, float]]) -> None:
    assert parse(f"<glue>{text}</glue>").spans == spans


def test_lists_longer_than_the_limit_count_as_none() -> None:
    pairs = ["(1, 2)"] * MAX_SPANS
    assert len(parse(f"<glue>[{', '.join(pairs)}]</glue>").spans) == MAX_SPANS
    assert parse(f"<glue>[{', '.join([*pairs, '(1, 2)'])}]</glue>").spans == []


@pytest.mark.parametrize("gap", ["\n", "\n\n", " \n", "\n  ", "\r\n"])
@pytest.mark.parametrize("letter", ["A", "F", "(C)"])
def test_well_formed(gap: str, letter: str) -> None:
    assert parse(f"{THINK}{gap}<answer>{letter}</answer>{gap}<glue>[(1, 2.5), (3,3)]</glue>{gap}").well_formed
    assert parse(f"{THINK}{gap}<answer>{letter}</answer>{gap}<glue>{gap}[(1, 2.5)]  </glue>").well_formed


@pytest.mark.parametrize("gap", ["", " ", "\t", "   "])
def test_elements_without_a_line_break_between_them_are_not_well_formed(gap: str) -> None:
    assert not parse(f"{THINK}{gap}<answer>B</answer>\n<glue>[(1, 2)]</glue>").well_formed
    assert not parse(f"{THINK}\n<answer>B</answer>{gap}<glue>[(1, 2)]</glue>").well_formed
    assert not parse(f"<answer>B</answer>{gap}<glue>[(1, 2)]</glue>", thinking=False).well_formed
    assert parse("<answer>B</answer>\n<glue>[(1, 2)]</glue>", thinking=False).well_formed


@pytest.mark.parametrize(("letter", "num_options"), [("A", 1), ("B", 2), ("F", 6), ("H", 8), ("(G)", 7)])
def test_letters_of_the_options_are_well_formed(letter: str, num_options: int) -> None:
    text = f"{THINK}\n<answer>{letter}</answer>\n<glue>[(1, 2)]</glue>"
    assert parse(text, num_options=num_options).well_formed
    assert num_options == 1 or not parse(text, num_options=num_options - 1).well_formed
    assert parse(text).well_formed is (letter in ("A", "B", "F"))


@pytest.mark.parametrize("number", [-1, 9])
def test_more_options_than_letters_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_options must be 0 to 8, got {number}"):
        parse(GOOD, num_options=number)


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("<time>", "").replace("</time>", ""),
        GOOD.replace("</time>", ""),
        GOOD.replace("<think>", ""),
        GOOD.replace("</think>", ""),
        GOOD.replace(">B<", "> B <"),
        GOOD.replace(">B<", ">G<"),
        GOOD.replace(">B<", ">(B<"),
        GOOD.replace(">B<", "><"),
        GOOD.replace(">B<", ">B. a dog<"),
        GOOD.replace("(20.3, 30.8)", "(30.8, 20.3)"),
        GOOD.replace("(20.3", "(-20.3"),
        GOOD.replace("44.5)]", "44.5),]"),
        GOOD.replace("[(20.3, 30.8), (41.0, 44.5)]", "[]"),
        GOOD.replace("[(20.3, 30.8), (41.0, 44.5)]", "[[1, 2]]"),
        GOOD.replace("</glue>", ""),
        GOOD + "x",
        "x" + GOOD,
        GOOD.replace("\n<glue>", "\nso <glue>"),
        GOOD + GOOD,
        THINK + "<glue>[(1, 2)]</glue><answer>B</answer>",
        THINK + "<answer>B</answer>",
    ],
)
def test_not_well_formed(text: str) -> None:
    assert not parse(text).well_formed


def test_parse_wants_text() -> None:
    with pytest.raises(TypeError, match="parse: text must be a string, got list; decode the tokens first"):
        parse([1, 2])  # type: ignore[arg-type]


@given(st.text(alphabet="<>/thinkanswerglue[]() \n.,0129ABétime", max_size=200))
def test_parse_never_fails_and_its_ranges_lie_in_the_text(text: str) -> None:
    response = parse(text)
    for chars in (response.answer_chars, response.span_chars):
        assert chars is None or 0 <= chars[0] <= chars[1] <= len(text)


# -- tokens ----------------------------------------------------------------------------------------------------------

CORPUS = [GOOD, "<think>Ein Hündchen läuft 🐕 über das Feld 漢字</think>", "the cat sat (3.5, 12.25) on [(1, 2)]"] * 20
TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>", "<time>", "</time>"]
ENDS = ["<|end|>", "<|pad|>"]


def wrap(tokenizer: Tokenizer, special: list[str]) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=ENDS[0], pad_token=ENDS[1], unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


def byte_level(vocab_size: int, special: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[*ENDS, "<unk>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer, special)


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece-like: a space is part of the next piece, and the first one is stripped on decoding."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=[*ENDS, "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer, [])


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama-like: characters outside the vocabulary become one token a byte."""
    tokens = ENDS + ["<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(set("".join(CORPUS[:1])) | {"▁"})
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer, [])


def word_level() -> PreTrainedTokenizerFast:
    """Tags, letters, digits and words as whole tokens, joined without spaces, like the tiny model's."""
    tokens = [*ENDS, "<unk>", *TAGS, *"ABCDEF0123456789.,()[]\n ", "cat", "dog", "at"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer, TAGS)


def slow_bytes() -> PreTrainedTokenizerBase:
    """A tokenizer without offsets, written in Python, that decodes part of a character to nothing."""
    slow = ByT5Tokenizer()
    slow.add_special_tokens({"additional_special_tokens": ENDS})
    return slow


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "slow_bytes": slow_bytes,
    "bytes": lambda: byte_level(260, []),
    "byte_pairs": lambda: byte_level(400, []),
    "byte_pairs_tags": lambda: byte_level(400, TAGS),
    "unigram": unigram,
    "byte_fallback": byte_fallback,
    "word_level": word_level,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def slow_truth(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Every token's text range from the decoded text of every prefix; a token inside a character takes it whole."""
    text = decode(tokenizer, ids)
    response = parse(text)
    starts: list[int] = []
    ends: list[int] = []
    for i in range(len(ids)):
        for prefix, where in ((decode(tokenizer, ids[:i]), starts), (decode(tokenizer, ids[: i + 1]), ends)):
            common = 0
            while common < min(len(prefix), len(text)) and prefix[common] == text[common]:
                common += 1
            where.append(common + (where is ends and len(prefix) > common))
    truth = [REST] * len(ids)
    for chars, segment in ((response.span_chars, SPAN), (response.answer_chars, ANSWER)):
        for i in range(len(ids)):
            if chars is not None and starts[i] < chars[1] and (ends[i] > chars[0] or starts[i] >= chars[0]):
                truth[i] = segment
    return truth


RESPONSES = [
    GOOD,
    THINK + "\n<answer>B</answer>",
    "<answer></answer><glue></glue>",
    "<answer>B</answer><answer>C</answer>\n<glue>[(1, 2)]</glue>",
    "<think><answer>A</answer></think><answer>(B)</answer>\n\n<glue>[(1, 2)]</glue> and more",
    "<answer>🐕漢</answer><glue>[(1.25, 3)]</glue>",
    "<glue>[(1, 2)]</glue><answer> F. dog </answer>",
    "no tags at all",
    "<answer>B<glue>[(1, 2)",
    "",
]


@pytest.mark.parametrize("text", RESPONSES)
def test_token_sets_equal_the_slow_truth(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ends = [tokenizer.convert_tokens_to_ids(end) for end in (*ENDS, ENDS[1])]
    ids = [*tokenizer.encode(text, add_special_tokens=False), *ends]
    segments = token_segments(ids, tokenizer)
    assert segments.dtype == torch.uint8
    assert segments.shape == (len(ids),)
    assert segments.tolist() == slow_truth(tokenizer, ids)
    assert segments[-3:].tolist() == [REST] * 3
    # The same from a response that was parsed already, from the text with the end tokens or without them.
    for kept in (ids, ids[:-3]):
        assert token_segments(ids, tokenizer, parse(decode(tokenizer, kept))).tolist() == segments.tolist()


def test_what_the_sets_hold(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode(GOOD, add_special_tokens=False)
    segments = token_segments(torch.tensor(ids), tokenizer).tolist()
    answer = decode(tokenizer, [t for t, s in zip(ids, segments, strict=True) if s == ANSWER])
    spans = decode(tokenizer, [t for t, s in zip(ids, segments, strict=True) if s == SPAN])
    rest = decode(tokenizer, [t for t, s in zip(ids, segments, strict=True) if s == REST])
    assert "B" in answer
    assert len(answer) < 10
    assert "20.3,30.8),(41.0,44.5)" in spans.replace(" ", "")
    assert "answer" not in spans
    assert "20.3" not in rest
    assert "<think>" in rest
    assert "B" not in rest


@pytest.mark.parametrize("kind", ["bytes", "byte_pairs_tags", "byte_fallback", "unigram", "slow_bytes"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sampled_ids_equal_the_slow_truth(kind: str, data: st.DataObject) -> None:
    """Ids as a model samples them: not those of an encoder, with cut characters and special tokens anywhere."""
    if kind not in CACHE:
        CACHE[kind] = TOKENIZERS[kind]()
    tokenizer = CACHE[kind]
    pieces = data.draw(st.lists(st.sampled_from([*TAGS, "B", "(1, 2)", "[", "]", "🐕", " ", "cat"]), max_size=12))
    noise = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=6))
    ids: list[int] = []
    for piece in pieces:
        ids += tokenizer.encode(piece, add_special_tokens=False)
        if noise and len(piece) % 2:
            ids.append(noise.pop())
    assert token_segments(ids, tokenizer).tolist() == slow_truth(tokenizer, ids)


CACHE: dict[str, PreTrainedTokenizerBase] = {}


def test_a_token_inside_a_character_belongs_to_it() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    ids = tokenizer.encode("<answer>🐕</answer>", add_special_tokens=False)
    segments = token_segments(ids, tokenizer).tolist()
    assert segments.count(ANSWER) == 4
    first = segments.index(ANSWER)
    assert segments[first : first + 4] == [ANSWER] * 4


def test_five_hundred_tokens_take_a_few_milliseconds() -> None:
    tokenizer = TOKENIZERS["byte_pairs"]()
    rng = random.Random(0)
    ids = [rng.randrange(3, len(tokenizer)) for _ in range(400)] + tokenizer.encode(GOOD, add_special_tokens=False)
    token_segments(ids, tokenizer)
    times = []
    for _ in range(5):
        begin = time.process_time()
        token_segments(ids, tokenizer)
        times.append(time.process_time() - begin)
    # Processor time, typically 5 ms; a decode of a prefix for every token takes above 70.
    assert sorted(times)[1] < 0.05


def test_errors() -> None:
    tokenizer = TOKENIZERS["word_level"]()
    with pytest.raises(ValueError, match="token_ids must not be negative, got -100"):
        token_segments([3, -100], tokenizer)
    with pytest.raises(ValueError, match="token_ids must be the \\[T\\] ids of one response, got a batch"):
        token_segments(torch.zeros(2, 3, dtype=torch.int64), tokenizer)
    with pytest.raises(ValueError, match="response must be parsed from the text of token_ids, got 'B' for 'A'"):
        token_segments(tokenizer.encode("A", add_special_tokens=False), tokenizer, parse("B"))
    assert token_segments([], tokenizer).shape == (0,)
