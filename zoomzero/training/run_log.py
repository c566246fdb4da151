"""What a training leaves for its report, in its folder: the figures of every log, and some responses token by token.

metrics.jsonl has one line per log: step and figures. samples.jsonl has one line per sampled step: the responses to one
question with each token's text, segment and advantage. At most about NUM_SAMPLED steps of a run are sampled, evenly, so
that the file stays small however long the run. A run that starts over begins both anew; a resumed one goes on, and
steps that it takes again are written again: the last line of a step counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from zoomzero.rewards import REWARDS
from zoomzero.training.groups import GroupBatch

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
NUM_SAMPLED = 50


@dataclass(frozen=True)
class SampledGroup:
    """The responses to one question, token by token."""

    question: str
    """As asked."""
    answer: str
    """The right option's letter."""
    spans: list[list[float]]
    """The true spans, in seconds."""
    responses: list[dict[str, Any]]
    """One per response: "rewards" by name, and lists of equal lengths "tokens" (texts), "segments" (0 rest, 1 answer,
    2 span) and "advantages" (0 where the loss leaves a token out)."""


class RunLog(TrainerCallback):
    """Writes both files; a callback of the trainer, in its first process only.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step == 0:
            for name in (METRICS_FILE, SAMPLES_FILE):
                (self._folder / name).unlink(missing_ok=True)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs is not None and "miou" in logs:
            figures = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
            _append(self._folder / METRICS_FILE, {"step": state.global_step, **figures})


def sampled_group(
    row: Mapping[str, Any],
    groups: GroupBatch,
    written: torch.Tensor,
    rewards: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
) -> SampledGroup:
    """The first group of a batch.

    Args:
        row: the dataset's, of the group.
        groups: whose first responses are the group's, with segments.
        written: bool [G, T], tokens of the responses, whether the loss takes them or not.
        rewards: float32 [B, 4] in the order of `REWARDS`.
        tokenizer: for the tokens' texts.
    """
    if groups.segments is None:
        raise ValueError("sampled_group: groups must have segments, got None; pass a batch of the collector")
    responses = []
    for place, keep in enumerate(written.cpu()):
        ids = groups.token_ids[place].cpu()[keep].tolist()
        responses.append(
            {
                "rewards": dict(zip(REWARDS, rewards[place].tolist(), strict=True)),
                "tokens": [str(tokenizer.decode([token])) for token in ids],
                "segments": groups.segments[place][keep].tolist(),
                "advantages": [round(value, 5) for value in groups.advantages[place].cpu()[keep].tolist()],
            }
        )
    spans = [[float(start), float(end)] for start, end in row["spans"]]
    return SampledGroup(str(row["question"]), str(row["answer"]), spans, responses)


def write_sample(folder: str | Path, state: TrainerState, group: SampledGroup) -> None:
    """Write the responses to one question down, if the step that is beginning is one of those to sample."""
    if state.is_world_process_zero and state.global_step % max(1, state.max_steps // NUM_SAMPLED) == 0:
        _append(Path(folder, SAMPLES_FILE), {"step": state.global_step + 1, **group.__dict__})


def _append(file: Path, entry: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="ascii") as out:
        out.write(json.dumps(entry) + "\n")
