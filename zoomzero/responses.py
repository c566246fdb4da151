"""Reading a model's response: thinking, answer letter, evidence spans, and which tokens say what.

The format is

    <think> ... <time>(s, e)</time> ... </think>\\n<answer>B</answer>\\n<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>

where `glue` holds the evidence spans in seconds; the variant without thinking is answer and glue alone. Responses are
text a model wrote, so nothing here evaluates them, every pattern is matched in time linear in the text, and numbers and
lists are bounded.

Note [Which element counts]
Answer and glue are looked for after the last `</think>` (in the whole text where there is none), so that tags quoted in
the reasoning do not count. The first opening tag counts, up to the first closing tag after it. An element that is
never closed does not count: its tokens are REST and it scores nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from zoomzero.prompts import OPTION_LETTERS

if TYPE_CHECKING:
    from zoomzero.intervals import Span

REST, ANSWER, SPAN = 0, 1, 2

# No grounded answer has more; a longer list is noise and counts as none.
MAX_SPANS = 256
# Twelve digits of seconds are thirty thousand years; twenty decimals are all that repr() of a float prints.
_DIGITS, _DECIMALS = "[0-9]{1,12}", "[0-9]{1,20}"
_NUMBER = rf"([+-]?(?:{_DIGITS}(?:\.(?:{_DECIMALS})?)?|\.{_DECIMALS})(?:[eE][+-]?[0-9]{{1,2}})?)"
_PAIR = re.compile(rf"\s*(?:\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,?\s*\)|\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,?\s*\])\s*")
_STRICT_PAIR = rf"\({_DIGITS}(?:\.{_DECIMALS})?,\s*{_DIGITS}(?:\.{_DECIMALS})?\)"
_STRICT_SPANS = re.compile(rf"\[{_STRICT_PAIR}(?:,\s*{_STRICT_PAIR}){{0,{MAX_SPANS - 1}}}\]")

# Options that the published format check knows: A to F.
PUBLISHED_NUM_OPTIONS = 6


class Decoder(Protocol):
    """Turns tokens into text; tokenizers of transformers do."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """The text of some tokens in a row."""


@dataclass(frozen=True)
class Response:
    """A response taken apart. Character ranges are (start, end) into the text given to `parse`.

    Attributes:
        thinking: text inside the think element, or None.
        answer: text of the answer element without surrounding space and parentheses ("B" for "(B)"), or None without
            such an element. It need not be a letter: a model may write anything.
        spans: evidence spans in seconds in the order written; empty when missing or not a list of pairs. Spans that end
            before they start are left out.
        well_formed: the whole response has the format above, with the letter of an option, spans with
            0 <= start <= end, and a line break between the elements.
        answer_chars, span_chars: what stands between the tags of the answer and the glue element, or None.
        text: what was parsed.
    """

    thinking: str | None
    answer: str | None
    spans: list[Span]
    well_formed: bool
    answer_chars: tuple[int, int] | None
    span_chars: tuple[int, int] | None
    text: str = ""


def parse(text: str, *, thinking: bool = True, num_options: int = PUBLISHED_NUM_OPTIONS) -> Response:
    """Take a response apart; see Note [Which element counts] for missing and repeated tags.

    Args:
        text: the response, decoded with its tags.
        thinking: whether the prompt asked for a think element; decides `well_formed` and nothing else.
        num_options: options of the question, whose letters are well formed; the published check allows A to F always. 0
            for a question without options, whose answer may be any words.

    Raises:
        TypeError: `text` is not a string.
        ValueError: `num_options` is out of range.
    """
    if not isinstance(text, str):
        raise TypeError(f"parse: text must be a string, got {type(text).__name__}; decode the tokens first")
    if not 0 <= num_options <= len(OPTION_LETTERS):
        raise ValueError(
            f"parse: num_options must be 0 to {len(OPTION_LETTERS)}, got {num_options}; pass the number of options"
        )
    think_end = text.rfind("</think>")
    after = 0 if think_end < 0 else think_end + len("</think>")
    answer_chars = _content(text, "answer", after)
    span_chars = _content(text, "glue", after)
    return Response(
        thinking=_thinking(text, think_end),
        answer=None if answer_chars is None else bare_letter(text[slice(*answer_chars)]),
        spans=[] if span_chars is None else _parse_spans(text[slice(*span_chars)]),
        well_formed=_is_well_formed(text, think_end if thinking else None, answer_chars, span_chars, num_options),
        answer_chars=answer_chars,
        span_chars=span_chars,
        text=text,
    )


def parsed(response: str | Response) -> Response:
    """The response taken apart, unless it is already."""
    return response if isinstance(response, Response) else parse(response)


def bare_letter(text: str) -> str:
    """The text without surrounding space and parentheses: "B" for " (B) "."""
    return text.strip().strip("()").strip()


def _content(text: str, tag: str, after: int) -> tuple[int, int] | None:
    opening = text.find(f"<{tag}>", after)
    if opening < 0:
        return None
    start = opening + len(tag) + 2
    end = text.find(f"</{tag}>", start)
    return None if end < 0 else (start, end)


def _thinking(text: str, think_end: int) -> str | None:
    if think_end < 0:
        return None
    start = text.find("<think>", 0, think_end)
    # Some chat templates open the element in the prompt, so that the response starts inside it.
    return text[start + len("<think>") if start >= 0 else 0 : think_end]


def _parse_spans(text: str) -> list[Span]:
    """Pairs of a Python list of pairs such as "[(1, 2.5), [3, 4]]"; empty if the whole is anything else."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return []
    spans: list[Span] = []
    position, end = 1, len(text) - 1
    while position < end and len(spans) <= MAX_SPANS and (match := _PAIR.match(text, position, end)):
        first, second = (float(number) for number in match.groups() if number is not None)
        spans.append((first, second))
        position = match.end()
        if position < end:
            if text[position] != ",":
                return []
            position += 1
    # What is left now is neither a pair nor the comma that may end a Python list.
    if text[position:end].strip() or len(spans) > MAX_SPANS:
        return []
    return [(start, stop) for start, stop in spans if start <= stop]


def _is_well_formed(
    text: str,
    think_end: int | None,
    answer_chars: tuple[int, int] | None,
    span_chars: tuple[int, int] | None,
    num_options: int,
) -> bool:
    """Whether the text is think element with a time, answer element, glue element, each on lines of its own.

    think_end is None for the variant without thinking: then the think element must be absent. Every tag is found by
    position, never by a pattern with several open ends, so the check is linear in the text.
    """
    if answer_chars is None or span_chars is None or answer_chars[1] > span_chars[0]:
        return False
    if think_end is not None and not _thinks_well(text, think_end):
        return False
    before_answer = text[
        think_end + len("</think>") if think_end is not None else 0 : answer_chars[0] - len("<answer>")
    ]
    between_answer_and_glue = text[answer_chars[1] + len("</answer>") : span_chars[0] - len("<glue>")]
    behind_glue = text[span_chars[1] + len("</glue>") :]
    if (before_answer + between_answer_and_glue + behind_glue).strip():
        return False
    # A space or nothing between two elements is not the published format: it wants a line break.
    gaps = [between_answer_and_glue] if think_end is None else [before_answer, between_answer_and_glue]
    if not all("\n" in gap for gap in gaps):
        return False
    answer = text[slice(*answer_chars)]
    if num_options == 0 and (not answer.strip() or "<" in answer):
        return False
    if num_options > 0 and answer not in {
        form for letter in OPTION_LETTERS[:num_options] for form in (letter, f"({letter})")
    }:
        return False
    content = text[slice(*span_chars)].strip()
    return bool(_STRICT_SPANS.fullmatch(content)) and len(_parse_spans(content)) == content.count("(")


def _thinks_well(text: str, think_end: int) -> bool:
    """Whether the text starts with its only think element and that cites a time."""
    if not text.lstrip().startswith("<think>") or text.count("<think>") != 1 or text.count("</think>") != 1:
        return False
    time_start = text.find("<time>", 0, think_end)
    return time_start >= 0 and text.find("</time>", time_start, think_end) >= 0


# -- tokens ----------------------------------------------------------------------------------------------------------


def token_segments(
    token_ids: Sequence[int] | torch.Tensor, tokenizer: Decoder, response: Response | None = None
) -> torch.Tensor:
    """Which tokens of a response carry the answer and which the spans.

    Works for any tokenizer: the ids are decoded (never encoded again, which may give other tokens than those sampled)
    and token boundaries are found in the decoded text. ANSWER and SPAN are the tokens that hold at least one character,
    or part of one, between the tags of the answer and of the glue element; tags, reasoning and special tokens are REST.

    Args:
        token_ids: [T] ids of the response, padding and end-of-sequence included.
        tokenizer: a transformers tokenizer, fast or slow, or what decodes as one does.
        response: these ids decoded with their special tokens and parsed, where the caller has it; end and padding
            tokens behind it may be missing from its text.

    Returns:
        uint8 [T]: REST = 0, ANSWER = 1, SPAN = 2. With a missing, unclosed or empty element its set is empty; with
        repeated ones the element that `parse` reads counts (Note [Which element counts]).

    Raises:
        ValueError: ids are not one-dimensional or negative, or the response is not theirs.
    """
    ids = token_ids.tolist() if isinstance(token_ids, torch.Tensor) else list(token_ids)
    if any(isinstance(token, list) for token in ids):
        raise ValueError("token_segments: token_ids must be the [T] ids of one response, got a batch; pass one row")
    if ids and min(ids) < 0:
        raise ValueError(
            f"token_segments: token_ids must not be negative, got {min(ids)}; cut or replace padding first"
        )
    segments = torch.zeros(len(ids), dtype=torch.uint8)
    if not ids:
        return segments

    # The searches below look at the same prefixes again and again.
    @functools.cache
    def decode(count: int) -> str:
        return str(tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    text = decode(len(ids))
    if response is None:
        response = parse(text)
    elif not text.startswith(response.text):
        raise ValueError(
            f"token_segments: response must be parsed from the text of token_ids, got {response.text!r:.80} for "
            f"{text!r:.80}; decode with special tokens, or leave response out"
        )
    # ANSWER is written last: a token that holds the letter and the start of the spans counts as the letter.
    for chars, segment in ((response.span_chars, SPAN), (response.answer_chars, ANSWER)):
        if chars is not None and chars[0] < chars[1]:
            first, last = _tokens_over(chars, text, decode, len(ids))
            segments[first : last + 1] = segment
    return segments


def _tokens_over(chars: tuple[int, int], text: str, decode: Callable[[int], str], num_tokens: int) -> tuple[int, int]:
    """First and last token that hold part of the characters.

    Token i starts where the text of the first i tokens agrees with the whole text for the last time, and ends where the
    first i + 1 do; a token that ends inside a UTF-8 character (decoded as U+FFFD until the next token completes it)
    also holds that character. Some tokenizers decode part of a character to nothing, so a token without any text counts
    with what follows it. Starts and ends grow with i, so binary searches with one decode per step find them.
    """

    def start(count: int) -> int:
        return _common_prefix(decode(count), text)

    def end(count: int) -> int:
        prefix = decode(count)
        common = _common_prefix(prefix, text)
        return common + 1 if len(prefix) > common else common

    first = min(
        _smallest(lambda count: end(count + 1) > chars[0], num_tokens),
        _smallest(lambda count: start(count) >= chars[0], num_tokens),
    )
    behind = _smallest(lambda count: start(count) >= chars[1], num_tokens)
    return first, max(first, behind - 1)


def _common_prefix(prefix: str, text: str) -> int:
    if text.startswith(prefix):
        return len(prefix)
    low, high = 0, min(len(prefix), len(text))
    while low < high:
        middle = (low + high + 1) // 2
        if prefix[:middle] == text[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _smallest(holds: Callable[[int], bool], limit: int) -> int:
    """Smallest number in 0..limit for which a condition that stays true once true holds; `limit` if none before."""
    low, high = 0, limit
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
