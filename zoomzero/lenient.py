"""Reading what a model meant, for inference: answers and spans that are clear but not written in the trained format.

Rewards stay strict (`zoomzero.rewards`): a model is paid for the format, a user wants the answer. Reading never
guesses: where a text could mean two options, or two ways to pair its times, it means none.

An answer is read from the answer element, or without one from all that follows the thinking. Each rule is tried on its
own, and the first that applies decides:

1. the letter alone, in any case and with any punctuation or emphasis around it: "B.", "b", "**B**", "(B)", "[b]";
2. a label and a text: "(B) the nurse", "B. the nurse", "b) the nurse", if the text is not another option's and names no
   other letter;
3. an option's own text, whatever its case, spaces and punctuation, if one option alone has it;
4. a sentence that says so: "The answer is B", "Option (B) is correct", if it names no other letter.

Spans are read from the glue element: a list of pairs as trained, or one pair or several, in any brackets or none,
joined by "," "-" or "to", each time as seconds ("20.3", "20.3s", "20 seconds") or as a clock's ("00:20", "1:02:03").
Two times stand for a span only where they are visibly a pair; a text with anything else in it names none. Spans that
the thinking cites inside <time></time> are read likewise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from zoomzero.intervals import Span
from zoomzero.prompts import OPTION_LETTERS
from zoomzero.responses import MAX_SPANS, Response, parsed

# Nobody hides an answer deeper; the patterns below are then cheap whatever a model writes.
MAX_CHARACTERS = 4096

_EDGES = " \t\r\n*_`\"'“”‘’.,:;!?()[]{}<>"
_LABEL = re.compile(r"[\s*_`\"']*(?:[(\[]\s*([A-Ha-h])\s*[)\]]|([A-Ha-h])\s*[.):])[\s*_`]*(.*)", re.DOTALL)
# A letter on its own: "A" may also be an article, so a sentence with one names it.
_ALONE = re.compile(r"(?<![A-Za-z0-9'’])([A-H])(?![A-Za-z0-9'’])")
_SENTENCE = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be))?\s*:?[\s*_`]*[(\[]?([A-H])\b", re.IGNORECASE
)

_CLOCK = r"(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-9]{2}(?:\.[0-9]{1,9})?"
_SECONDS = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_TIME = rf"({_CLOCK}|{_SECONDS})\s*(?:(?:seconds?|secs?|s)(?![a-z]))?"
_JOIN = r"\s*(?:,|-|–|—|~|to|until)\s*"
_DASH = r"\s*(?:-|–|—|~|to|until)\s*"
_PAIR = re.compile(
    rf"\s*(?:[(\[{{]\s*(?:from\s+)?{_TIME}{_JOIN}{_TIME}\s*[)\]}}]|(?:from\s+)?{_TIME}{_DASH}{_TIME})", re.IGNORECASE
)
_FLAT_PAIR = re.compile(rf"\s*{_TIME}{_JOIN}{_TIME}\s*", re.IGNORECASE)
_CITED = re.compile(r"<time>([^<]{1,512})</time>")
_BETWEEN = re.compile(r"\s*(?:,\s*and\b|,|;|\band\b|\n)\s*|\s+(?=[(\[{])", re.IGNORECASE)


def read_letter(response: str | Response, options: Sequence[str]) -> str | None:
    """Letter of the option that the response means, None if it means none of them or could mean two.

    Args:
        response: a response, text or parsed.
        options: bare texts of the question's options.
    """
    taken = parsed(response)
    letters = OPTION_LETTERS[: len(options)]
    if taken.answer_chars is not None:
        text = taken.text[slice(*taken.answer_chars)]
    else:
        text = taken.text[taken.text.rfind("</think>") + len("</think>") if "</think>" in taken.text else 0 :]
        text = text.split("<glue>")[0]
        if "<answer>" in text:
            # An element that was never closed was cut: what it says may go on.
            return None
    text = text[:MAX_CHARACTERS]
    bare = text.strip(_EDGES)
    if len(bare) == 1 and (bare in letters or bare.upper() in letters):
        return bare.upper()
    by_text = [letter for letter, option in zip(letters, options, strict=True) if _plain(option) == _plain(text)]
    if _plain(text) and by_text:
        return by_text[0] if len(by_text) == 1 else None
    if label := _LABEL.fullmatch(text):
        return _labelled((label[1] or label[2]).upper(), label[3], letters, options)
    said = {match[1].upper() for match in _SENTENCE.finditer(text)}
    named = set(_ALONE.findall(text)) | said
    return said.pop() if len(said) == 1 and len(named) == 1 and said <= set(letters) else None


def _labelled(letter: str, rest: str, letters: str, options: Sequence[str]) -> str | None:
    """The label's letter, unless the text behind it speaks for another option."""
    if letter not in letters:
        return None
    own = _plain(options[letters.index(letter)])
    if _plain(rest) == own:
        return letter
    if any(other != letter for other in _ALONE.findall(rest)):
        return None
    for other, option in zip(letters, options, strict=True):
        text = _plain(option)
        # As whole words; a text that is part of the own option's says nothing.
        if other != letter and text and f" {text} " in f" {_plain(rest)} " and f" {text} " not in f" {own} ":
            return None
    return letter


def _plain(text: str) -> str:
    """Words alone: without case, punctuation and repeated space. A text of signs only is kept as it is."""
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return words or text.strip()


def read_spans(response: str | Response) -> list[Span]:
    """Spans in seconds that the response names, in the order written; empty where it names none clearly.

    Those that end before they start are left out, as in `zoomzero.responses.parse`.

    Args:
        response: a response, text or parsed.
    """
    taken = parsed(response)
    if taken.spans or taken.span_chars is None:
        return list(taken.spans)
    text = taken.text[slice(*taken.span_chars)].strip().strip("*`\"'")
    if len(text) > MAX_CHARACTERS:
        return []
    pairs = _pairs(text)
    return [(start, end) for start, end in pairs if start <= end]


def read_citations(response: str | Response) -> list[Span]:
    """Spans in seconds that the thinking cites inside <time></time>, in the order written, each once.

    A citation that is not clearly of spans is left out, and so are those that end before they start.

    Args:
        response: a response, text or parsed.
    """
    thinking = (parsed(response).thinking or "")[: 4 * MAX_CHARACTERS]
    cited = [pair for match in _CITED.finditer(thinking) for pair in _pairs(match[1].strip())]
    return list(dict.fromkeys(pair for pair in cited if pair[0] <= pair[1]))[:MAX_SPANS]


def _pairs(text: str) -> list[Span]:
    """The pairs of a text that consists of pairs alone; empty for any other text."""
    for inner in (text, text[1:-1]) if text[:1] in "[({" and text[-1:] in "])}" else (text,):
        if flat := _FLAT_PAIR.fullmatch(inner):
            return [(_time(flat[1]), _time(flat[2]))]
        pairs: list[Span] = []
        position = 0
        while (match := _PAIR.match(inner, position)) and len(pairs) < MAX_SPANS:
            first, second = (group for group in match.groups() if group is not None)
            pairs.append((_time(first), _time(second)))
            position = match.end()
            if not inner[position:].strip(" \n\t.,"):
                return pairs
            between = _BETWEEN.match(inner, position)
            if between is None:
                break
            position = between.end()
    return []


def _time(text: str) -> float:
    """Seconds of "20.3", "00:20" or "1:02:03"."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total
