"""Rewards of a batch of rollouts: format, zoom (the model answers again from the zoomed frames), IoU and answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero import intervals
from zoomzero.generation import next_token_logps
from zoomzero.responses import parse
from zoomzero.rewards import answer_reward, format_reward, iou_reward, zoom_reward
from zoomzero.trainer.credit import REWARDS
from zoomzero.trainer.prompts import Look, PromptEncoder, through_tower


@dataclass(frozen=True)
class Scores:
    """rewards float32 [B, 4] in the order of `REWARDS`; spans: those inside the video that each response zooms into;
    num_zoom_prompts: distinct prompts that the zoom pass scored."""

    rewards: Tensor
    spans: list[list[tuple[float, float]]]
    num_zoom_prompts: int

    def mean(self, reward: str) -> float:
        """Mean of one reward over the batch."""
        return float(self.rewards[:, REWARDS.index(reward)].mean())

    @property
    def fraction_without_span(self) -> float:
        """Share of the responses that name no span inside the video."""
        return sum(not spans for spans in self.spans) / len(self.spans)


def valid_spans(text: str, duration: float) -> list[tuple[float, float]]:
    """The response's spans, merged and cut to [0, duration); empty if it names none there."""
    return [span for span in intervals.clip(parse(text).spans, 0.0, duration) if span[0] < duration]


def score(
    encoder: PromptEncoder,
    scorer: Qwen2_5_VLForConditionalGeneration | None,
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    zoom_batch_size: int,
) -> Scores:
    """Score responses `texts` [B] to the dataset rows `rows` [B] (a group's row repeated).

    scorer: the model that answers the zoom pass, None to leave the zoom reward 0. Each distinct set of zoomed frames
    of a question is answered once, `zoom_batch_size` in a forward, with a single greedy token that must be the right
    letter.
    """
    durations = {path: encoder.videos.get(path).duration for path in {row["video"] for row in rows}}
    spans = [valid_spans(text, durations[row["video"]]) for row, text in zip(rows, texts, strict=True)]
    zoom, num_prompts = [0.0] * len(rows), 0
    if scorer is not None:
        zoom, num_prompts = _zoom_rewards(encoder, scorer, rows, spans, zoom_batch_size)
    thinking = encoder.processor.settings.prompts.thinking
    rewards = [
        (
            format_reward(text, thinking=thinking),
            zoomed,
            iou_reward(text, _pairs(row["spans"])),
            answer_reward(text, row["answer"]),
        )
        for row, text, zoomed in zip(rows, texts, zoom, strict=True)
    ]
    return Scores(torch.tensor(rewards, dtype=torch.float32), spans, num_prompts)


def _pairs(spans: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    return [(float(start), float(end)) for start, end in spans]


def _zoom_rewards(
    encoder: PromptEncoder,
    scorer: Qwen2_5_VLForConditionalGeneration,
    rows: Sequence[Mapping[str, Any]],
    spans: Sequence[Sequence[tuple[float, float]]],
    batch_size: int,
) -> tuple[list[float], int]:
    """Zoom reward of every response, and how many distinct prompts were scored."""
    planned: dict[tuple[Any, ...], Look] = {}
    keys = []
    for row, zoomed in zip(rows, spans, strict=True):
        ask = (row["video"], row["question"], tuple(row["options"]), tuple(zoomed))
        if ask not in planned:
            planned[ask] = encoder.zoom_look(row, zoomed)
        look = planned[ask]
        keys.append((look.frames_key, look.question, look.options))
    # Different spans can lead to the same frames.
    looks = {(look.frames_key, look.question, look.options): look for look in planned.values()}
    answers = dict(zip(looks, _answers(encoder, scorer, list(looks.values()), batch_size), strict=True))
    return [zoom_reward(answers[key], row["answer"]) for key, row in zip(keys, rows, strict=True)], len(looks)


@torch.no_grad()
def _answers(
    encoder: PromptEncoder, scorer: Qwen2_5_VLForConditionalGeneration, looks: Sequence[Look], batch_size: int
) -> list[str]:
    """The most likely next token, as text, of every zoom prompt."""
    answers: list[str] = []
    for start in range(0, len(looks), batch_size):
        prompts = through_tower(scorer, encoder.prepare(looks[start : start + batch_size]))
        tokens = next_token_logps(scorer, prompts).argmax(-1)
        answers += encoder.processor.tokenizer.batch_decode(tokens[:, None])
    return answers
