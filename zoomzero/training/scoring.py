"""Rewards of a batch of rollouts: format, zoom (the model answers again from the zoomed frames), IoU and answer."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero.intervals import inside_video
from zoomzero.looks import Look, PreparedPrompt, through_tower
from zoomzero.looks.rows import RowEncoder
from zoomzero.models.batches import by_tokens
from zoomzero.models.forward import next_token_logps
from zoomzero.responses import Response, parse
from zoomzero.rewards import (
    answer_reward,
    format_reward,
    iou_reward,
    zoom_reward,
)
from zoomzero.video import VideoError


@dataclass(frozen=True)
class Scores:
    """What B responses are worth."""

    rewards: Tensor
    """float32 [B, 4] in the order of `REWARDS`."""
    spans: list[list[tuple[float, float]]]
    """Those inside the video that each response zooms into."""
    num_zoom_prompts: int
    """Distinct prompts that the zoom pass scored."""
    unreadable: Mapping[str, VideoError] = field(default_factory=dict)
    """Why, by path, for videos that broke; their responses' rewards mean nothing and must be left out (`select`)."""

    def select(self, rows: Sequence[int]) -> "Scores":
        """Scores of some of the responses."""
        return Scores(self.rewards[list(rows)], [self.spans[row] for row in rows], self.num_zoom_prompts)


def valid_spans(response: Response, duration: float) -> list[tuple[float, float]]:
    """The response's spans, merged and cut to [0, duration); empty if it names none there."""
    return inside_video(response.spans, duration)


def score(
    encoder: RowEncoder,
    scorer: PreTrainedModel | None,
    rows: Sequence[Mapping[str, Any]],
    responses: Sequence[str | Response],
    max_tokens: int,
) -> Scores:
    """Score responses [B], texts or taken apart already, to the dataset rows `rows` [B] (a group's row repeated).

    scorer: the model that answers the zoom pass, None to leave the zoom reward 0. Each distinct set of zoomed frames
    of a question is answered once, at most `max_tokens` tokens in a forward, with a single greedy token that must be
    the right letter. A row without options earns format and IoU alone; its zoom and answer rewards are 0 for every
    response.
    """
    unreadable: dict[str, VideoError] = {}
    durations = dict.fromkeys((row["video"] for row in rows), 0.0)
    for path in durations:
        try:
            durations[path] = encoder.video(path).duration
        except VideoError as error:
            unreadable[path] = error
    thinking = encoder.processor.settings.prompts.thinking
    taken = [
        item if isinstance(item, Response) else taken_apart(item, row, thinking=thinking)
        for item, row in zip(responses, rows, strict=True)
    ]
    spans = [valid_spans(response, durations[row["video"]]) for row, response in zip(rows, taken, strict=True)]
    zoom, num_prompts = [0.0] * len(rows), 0
    if scorer is not None:
        zoom, num_prompts = _zoom_rewards(encoder, scorer, rows, spans, max_tokens, unreadable)
    rewards = [
        (
            format_reward(response),
            zoomed,
            iou_reward(response, _pairs(row["spans"]), duration=durations[row["video"]]),
            answer_reward(response, row["answer"]) if row["options"] else 0.0,
        )
        for row, response, zoomed in zip(rows, taken, zoom, strict=True)
    ]
    return Scores(torch.tensor(rewards, dtype=torch.float32), spans, num_prompts, unreadable)


def taken_apart(text: str, row: Mapping[str, Any], *, thinking: bool) -> Response:
    """The response to a row; one to a question without options is not asked to think, and answers in words."""
    return parse(text, thinking=thinking) if row["options"] else parse(text, thinking=False, num_options=0)


def _pairs(spans: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(float(start), float(end)) for start, end in spans]


def _zoom_rewards(
    encoder: RowEncoder,
    scorer: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    spans: Sequence[Sequence[tuple[float, float]]],
    max_tokens: int,
    unreadable: dict[str, VideoError],
) -> tuple[list[float], int]:
    """Zoom reward of every response, and how many distinct prompts were scored; adds to `unreadable`."""
    planned: dict[tuple[Any, ...], Look] = {}
    keys: list[Hashable] = []
    for row, zoomed in zip(rows, spans, strict=True):
        ask = (row["video"], row["question"], tuple(row["options"]), tuple(zoomed))
        if row["options"] and ask not in planned and row["video"] not in unreadable:
            try:
                planned[ask] = encoder.zoom_look(row, zoomed)
            except VideoError as error:
                unreadable[row["video"]] = error
        keys.append(_key(planned[ask]) if ask in planned else None)
    # Different spans can lead to the same frames.
    looks = {_key(look): look for look in planned.values()}
    answers = dict(zip(looks, _answers(encoder, scorer, list(looks.values()), max_tokens, unreadable), strict=True))
    rewards = [
        zoom_reward(answers.get(key, ""), row["answer"]) if row["options"] else 0.0
        for key, row in zip(keys, rows, strict=True)
    ]
    return rewards, len(looks)


def _key(look: Look) -> Hashable:
    return look.frames_key, look.inquiry


@torch.no_grad()
def _answers(
    encoder: RowEncoder,
    scorer: PreTrainedModel,
    looks: Sequence[Look],
    max_tokens: int,
    unreadable: dict[str, VideoError],
) -> list[str]:
    """The most likely next token, as text, of every zoom prompt; adds to `unreadable`, whose answers are empty."""
    answers = [""] * len(looks)
    # Visual tokens are known before a video is read; the texts' come on top, and count when the prompts are there.
    for part in by_tokens([look.plan.num_tokens for look in looks], max_tokens):
        prompts: dict[int, PreparedPrompt] = {}
        for place, prompt in zip(part, encoder.prepare([looks[place] for place in part]), strict=True):
            if isinstance(prompt, VideoError):
                unreadable[str(looks[place].video)] = prompt
            else:
                prompts[place] = prompt
        # The next frames are read while the model answers.
        encoder.expect(looks[part.stop :])
        places = list(prompts)
        for batch in by_tokens([len(prompts[place].input_ids) for place in places], max_tokens):
            chosen = [places[index] for index in batch]
            encoded = through_tower(scorer, [prompts[place] for place in chosen])
            tokens = next_token_logps(scorer, encoded, max_tokens).argmax(-1)
            for place, text in zip(chosen, encoder.processor.tokenizer.batch_decode(tokens[:, None]), strict=True):
                answers[place] = text
    return answers
