"""Lenient reading: what is clear is read, what could mean two things is not, and rewards know nothing of it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoomzero.lenient import read_citations, read_letter, read_spans
from zoomzero.responses import MAX_SPANS, parse
from zoomzero.rewards import answer_reward, format_reward

OPTIONS = ("the doctor", "the nurse", "a man", "A")


def _answer(text: str) -> str:
    return f"<think>so <time>(1, 2)</time></think>\n<answer>{text}</answer>\n<glue>[(1, 2)]</glue>"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("B.", "B"), (" B \n", "B"), ("(B)", "B"), ("[b]", "B"), ("**B**", "B"), ("`B`", "B"),
        ("**(B)**", "B"), ("B)", "B"), ("B:", "B"), ('"B"', "B"), ("D", "D"), ("d.", "D"),
        ("(B) the nurse", "B"), ("B. the nurse", "B"), ("b) The nurse.", "B"), ("**B.** the nurse", "B"),
        ("B: nurse", "B"), ("(B) someone in white", "B"), ("[B] the nurse, of course", "B"),
        ("the nurse", "B"), ("The Nurse.", "B"), (" THE  nurse ", "B"), ("a man", "C"), ("**the doctor**", "A"),
        ("The answer is B", "B"), ("The answer is (B).", "B"), ("Answer: B", "B"), ("the correct option is **B**", "B"),
        ("Option B is right", "B"),
    ],
)  # fmt: skip
def test_clear_answers_are_read(text: str, letter: str) -> None:
    for response in (_answer(text), parse(_answer(text)), f"<answer>{text}</answer>", text, f"hm</think>{text}"):
        assert read_letter(response, OPTIONS) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "E", "e.", "(H)", "B or C", "B, C", "A, B", "B and C", "A) or B)", "(A) (B)", "BC", "AB", "BB",
        "(B) the doctor", "B. the doctor, not the nurse", "B. C", "B. or C", "not B", "I see B on a sign",
        "the answer is B or C", "The answer is B, not A", "Option B or option C", "the answer is the nurse or doctor",
        "someone", "nurse", "?", "none", "the answer is E", "1",
    ],
)  # fmt: skip
def test_what_could_mean_two_options_or_none_is_not_read(text: str) -> None:
    assert read_letter(_answer(text), ("the doctor", "the nurse", "a man")) is None


def test_options_with_one_text_are_not_told_apart_and_an_unclosed_answer_is_none() -> None:
    assert read_letter(_answer("cat"), ("cat", "dog", "Cat.")) is None
    assert read_letter(_answer("dog"), ("cat", "dog", "Cat.")) == "B"
    assert read_letter("<answer>B", ("x", "y")) is None
    assert read_letter(_answer(""), ("", "y")) is None
    # A text that is another option's letter is that letter: it was asked for.
    assert read_letter(_answer("A"), OPTIONS) == "A"


def test_the_text_of_another_option_inside_ones_own_is_no_contradiction() -> None:
    options = ("red", "red and blue")
    assert read_letter(_answer("B. red and blue"), options) == "B"
    assert read_letter(_answer("B. they are red"), options) == "B"
    assert read_letter(_answer("A. red and blue"), options) is None


def test_thinking_and_spans_do_not_answer() -> None:
    assert read_letter("<think>The answer is A</think>B<glue>[(1, 2)]</glue>", OPTIONS) == "B"
    assert read_letter("<think>The answer is A</think>", OPTIONS) is None


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("[(20.3, 30.8), (41.0, 44.5)]", [(20.3, 30.8), (41.0, 44.5)]),
        ("(20.3, 30.8)", [(20.3, 30.8)]), ("[20.3, 30.8]", [(20.3, 30.8)]), ("20.3, 30.8", [(20.3, 30.8)]),
        ("20.3-30.8", [(20.3, 30.8)]), ("20.3s - 30.8s", [(20.3, 30.8)]), ("[(20.3s, 30.8s)]", [(20.3, 30.8)]),
        ("from 20 to 30 seconds", [(20.0, 30.0)]), ("20 seconds to 30 seconds", [(20.0, 30.0)]),
        ("00:20 - 00:31", [(20.0, 31.0)]), ("[(00:20, 01:31.5)]", [(20.0, 91.5)]),
        ("1:02:03-1:02:04", [(3723.0, 3724.0)]),
        ("(1, 2), (3, 4)", [(1.0, 2.0), (3.0, 4.0)]), ("(1, 2) (3, 4)", [(1.0, 2.0), (3.0, 4.0)]),
        ("1-2, 3-4", [(1.0, 2.0), (3.0, 4.0)]), ("1s-2s and 3s-4s", [(1.0, 2.0), (3.0, 4.0)]),
        ("[[1s, 2s], [3s, 4s]]", [(1.0, 2.0), (3.0, 4.0)]), ("[1-2; 3-4]", [(1.0, 2.0), (3.0, 4.0)]),
        ("{1, 2}", [(1.0, 2.0)]), ("(5, 2)", []), ("(5, 2), (1, 2)", [(1.0, 2.0)]), ("(7, 7)", [(7.0, 7.0)]),
    ],
)  # fmt: skip
def test_clear_spans_are_read(text: str, spans: list[tuple[float, float]]) -> None:
    response = f"<answer>B</answer><glue>{text}</glue>"
    assert read_spans(response) == read_spans(parse(response)) == spans


@pytest.mark.parametrize(
    "text",
    [
        "", "none", "20.3s", "00:20", "[1, 2, 3]", "[1, 2, 3, 4]", "1, 2, 3, 4", "(1, 2, 3)", "[(1, 2), 3]",
        "around 20 to 30", "20 to 30 or 40 to 50", "[(1, 2", "1-2-3", "(nan, inf)", "(-1, 2)", "1e9-2e9", "[(x, y)]",
        "(1, 2) dog (3, 4)", "1;2",
    ],
)  # fmt: skip
def test_times_that_are_no_clear_pairs_are_not_read(text: str) -> None:
    assert read_spans(f"<glue>{text}</glue>") == []


def test_spans_outside_their_element_do_not_count() -> None:
    assert read_spans("from 1 to 2 seconds") == []
    assert read_spans("<think><glue>(1, 2)</glue></think>") == []


def test_rewards_stay_strict() -> None:
    for text in ("B.", "b", "**B**", "(B) the nurse", "the nurse"):
        assert answer_reward(_answer(text), "B") == 0.0
        assert format_reward(_answer(text)) == 0.0


@given(st.text(alphabet="ABab.()[]*, \n<>/answerglu012:-to", max_size=120))
def test_reading_never_fails_and_gives_what_it_promises(text: str) -> None:
    for response in (text, f"<answer>{text}</answer>", f"<glue>{text}</glue>"):
        assert read_letter(response, ("an", "ba", "1")) in ("A", "B", "C", None)
        assert all(0 <= start <= end for start, end in read_spans(response))


HOSTILE = [
    "(" * 1_000_000, "B" * 1_000_000, "(1, 2)" * 200_000, "1-" * 500_000, "answer " * 150_000,
    " " * 1_000_000, "**" * 500_000, "1:" * 500_000, "and " * 200_000,
    "[" + "(1, 2), " * 100_000 + "]", ("9" * 100 + ", ") * 1000, "is " * 1300 + "B",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_read_at_once(text: str) -> None:
    begin = time.process_time()
    for response in (text, f"<answer>{text}</answer>", f"<glue>{text}</glue>"):
        read_letter(response, ("x", "y"))
        assert len(read_spans(response)) <= MAX_SPANS
    assert time.process_time() - begin < 1.0


def test_citations_are_read_from_the_thinking_alone() -> None:
    text = (
        "<think>At <time>(3, 5.5)</time> and <time>1:02 - 1:10</time>, again <time>(3, 5.5)</time>, not <time>9</time> "
        "nor <time>(8, 2)</time> nor <time>(1, 2</think>\n<answer>B</answer>\n"
        "<time>(70, 80)</time>\n<glue>[(3, 5.5)]</glue>"
    )
    assert read_citations(text) == [(3.0, 5.5), (62.0, 70.0)]
    assert read_citations("<time>(1, 2)</time><answer>B</answer>") == []
    assert len(read_citations("<think>" + "<time>(1, 2)</time><time>" * 40_000 + "</think>")) == 1
