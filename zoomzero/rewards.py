"""The four rewards of Zoom-Zero (arXiv 2512.14273) and the published way to credit them to tokens.

Each reward is a number in [0, 1] computed from text alone. They agree with the authors' functions except for one case:
there an empty second answer counts as right, because its text is looked for inside the true letter; here the parsed
letter must be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from zoomzero import intervals
from zoomzero.responses import bare_letter, parse

# Weight with which each reward (rows: format, zoom, iou, answer) goes to each token set (columns: REST, ANSWER, SPAN):
# every token gets (format + zoom) / 3, answer tokens answer / 3 besides, all others iou / 3.
TOKEN_ADV_CREDIT = torch.tensor(
    [[1.0, 1.0, 1.0],
     [1.0, 1.0, 1.0],
     [1.0, 0.0, 1.0],
     [0.0, 1.0, 0.0]], dtype=torch.float32) / 3  # fmt: skip


def format_reward(text: str, *, thinking: bool = True) -> float:
    """1 when the whole response has the format of `zoomzero.responses`, else 0.

    thinking: whether the prompt asked for a think element; False demands the variant without one.
    """
    return float(parse(text, thinking=thinking).well_formed)


def iou_reward(text: str, spans: Iterable[Sequence[float]]) -> float:
    """Intersection over union of the response's spans and the true spans (pairs of seconds); 0 when either is empty.

    Raises:
        ValueError: a true span is not a pair of finite numbers in order.
    """
    return intervals.iou(parse(text).spans, spans)


def answer_reward(text: str, letter: str) -> float:
    """1 when the answer element after the thinking is the true letter (with or without parentheses), else 0.

    Raises:
        ValueError: `letter` is not one letter A to Z.
    """
    return float(parse(text).answer == _true_letter(letter, "answer_reward"))


def zoom_reward(text: str, letter: str) -> float:
    """1 when the second answer, given from the zoomed frames, is the true letter, else 0; an empty one scores 0.

    Args:
        text: a whole response with an answer element, or just the letter ("B", "(B)").
        letter: the true letter.

    Raises:
        ValueError: `letter` is not one letter A to Z.
    """
    answer = parse(text).answer
    return float((bare_letter(text) if answer is None else answer) == _true_letter(letter, "zoom_reward"))


def _true_letter(letter: str, op: str) -> str:
    bare = bare_letter(letter)
    if len(bare) != 1 or not "A" <= bare <= "Z":
        raise ValueError(
            f"{op}: letter must be one letter A to Z, got {letter!r}; pass the option's letter, not its text"
        )
    return bare
