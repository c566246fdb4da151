"""The four rewards of Zoom-Zero (arXiv 2512.14273) and the published way to credit them to tokens.

Each reward is a number in [0, 1] computed from text alone. They agree with the authors' functions except for one case:
there an empty second answer counts as right, because its text is looked for inside the true letter; here the parsed
letter must be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoomzero import intervals
from zoomzero.responses import PUBLISHED_NUM_OPTIONS, Response, bare_letter, parse, parsed

# Order of the rewards and of the token sets: rows and columns of every credit matrix, columns of the scores.
REWARDS = ("format", "zoom", "iou", "answer")
NUM_SEGMENTS = 3  # REST, ANSWER, SPAN

# Weight with which each reward goes to each token set, as published: every token gets (format + zoom) / 3, answer
# tokens answer / 3 besides, all others iou / 3.
TOKEN_ADV_CREDIT = torch.tensor(
    [[1.0, 1.0, 1.0],
     [1.0, 1.0, 1.0],
     [1.0, 0.0, 1.0],
     [0.0, 1.0, 0.0]], dtype=torch.float32) / 3  # fmt: skip

# The same, but the IoU goes to the tokens that name the spans alone: reasoning earns format and zoom only.
SPAN_ADV_CREDIT = torch.tensor(
    [[1.0, 1.0, 1.0],
     [1.0, 1.0, 1.0],
     [0.0, 0.0, 1.0],
     [0.0, 1.0, 0.0]], dtype=torch.float32) / 3  # fmt: skip

# Plain GRPO's total, ((answer + zoom)/2 + format + iou)/3, as a weight per reward.
UNIFORM_WEIGHTS = (1 / 3, 1 / 6, 1 / 3, 1 / 6)
# The same total where nothing is zoomed: (answer + format + iou)/3.
UNIFORM_WEIGHTS_WITHOUT_ZOOM = (1 / 3, 0.0, 1 / 3, 1 / 3)


def format_reward(text: str | Response, *, thinking: bool = True, num_options: int = PUBLISHED_NUM_OPTIONS) -> float:
    """1 when the whole response has the format of `zoomzero.responses`, else 0.

    Args:
        text: the response, or the response parsed; then the next two are those it was parsed with.
        thinking: whether the prompt asked for a think element; False demands the variant without one.
        num_options: options of the question (2 to 8); unless told the published check's letters A to F are allowed.
    """
    taken = text if isinstance(text, Response) else parse(text, thinking=thinking, num_options=num_options)
    return float(taken.well_formed)


def iou_reward(text: str | Response, spans: Iterable[Sequence[float]], *, duration: float | None = None) -> float:
    """Intersection over union of the response's spans and the true spans; 0 when either is empty.

    Args:
        text: the response, or the response parsed.
        spans: the true spans, pairs of seconds.
        duration: seconds of the video, to which the response's spans are cut first, as answers' are before they are
            measured. None leaves them as they are, as the authors' function does.

    Raises:
        ValueError: a true span is not a pair of finite numbers in order.
    """
    named = parsed(text).spans
    return intervals.iou(named if duration is None else intervals.inside_video(named, duration), spans)


def answer_reward(text: str | Response, letter: str) -> float:
    """1 when the answer element after the thinking is the true letter (with or without parentheses), else 0.

    Raises:
        ValueError: `letter` is not one letter A to Z.
    """
    return float(parsed(text).answer == _true_letter(letter, "answer_reward"))


def zoom_reward(text: str | Response, letter: str) -> float:
    """1 when the second answer, given from the zoomed frames, is the true letter, else 0; an empty one scores 0.

    Args:
        text: a whole response with an answer element, or just the letter ("B", "(B)"); as text or parsed.
        letter: the true letter.

    Raises:
        ValueError: `letter` is not one letter A to Z.
    """
    taken = parsed(text)
    answer = bare_letter(taken.text) if taken.answer is None else taken.answer
    return float(answer == _true_letter(letter, "zoom_reward"))


def credit_matrix(
    credit: str | Sequence[Sequence[float]], *, zoom_reward: bool, weights: Sequence[float] | None = None
) -> Tensor:
    """float32 [rewards, segments] for `token_advantages`.

    Args:
        credit: "token_adv" (the published sets), "span_adv" (the same, the IoU to the span's tokens alone), "uniform"
            (every reward to every token, weighted as in plain GRPO) or the matrix itself, rows in the order of
            `REWARDS`, columns REST, ANSWER, SPAN.
        zoom_reward: False leaves the zoom reward out of any.
        weights: a factor for each reward, in their order; None is 1 for all.

    Raises:
        ValueError: a matrix or weights of another shape, or that are not finite.
    """
    if isinstance(credit, str):
        named = {"token_adv": TOKEN_ADV_CREDIT, "span_adv": SPAN_ADV_CREDIT}
        total = UNIFORM_WEIGHTS if zoom_reward else UNIFORM_WEIGHTS_WITHOUT_ZOOM
        matrix = named.get(credit, torch.tensor(total)[:, None].expand(-1, NUM_SEGMENTS)).clone()
    else:
        matrix = _finite("credit", credit, (len(REWARDS), NUM_SEGMENTS))
    if not zoom_reward:
        matrix[REWARDS.index("zoom")] = 0.0
    return matrix if weights is None else matrix * _finite("reward_weights", weights, (len(REWARDS),)).unsqueeze(1)


def _finite(name: str, numbers: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
    """float32 of the shape."""
    try:
        tensor = torch.tensor(numbers, dtype=torch.float32)
    except (ValueError, TypeError):
        tensor = torch.tensor(torch.nan)
    if tensor.shape != shape or not bool(tensor.isfinite().all()):
        raise ValueError(
            f"{name} must be {' x '.join(map(str, shape))} finite numbers, got {numbers!r:.200}; rewards are in the "
            f"order {', '.join(REWARDS)}, segments rest, answer, span"
        )
    return tensor


def informative_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups online filtering keeps, bool [P]: answers not all right or all wrong, or an IoU that varies.

    rewards float32 [P*G, 4] in the order of `REWARDS`, the G of a prompt next to each other.
    """
    grouped = rewards.view(-1, group_size, len(REWARDS))
    varied = [grouped[..., REWARDS.index(name)] for name in ("answer", "iou")]
    return torch.stack([column.amax(1) > column.amin(1) for column in varied]).any(0)


def _true_letter(letter: str, op: str) -> str:
    bare = bare_letter(letter)
    if len(bare) != 1 or not "A" <= bare <= "Z":
        raise ValueError(
            f"{op}: letter must be one letter A to Z, got {letter!r}; pass the option's letter, not its text"
        )
    return bare
