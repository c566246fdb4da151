"""Figures of a batch: what each process measures of its share, and what is logged of all shares."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zoomzero.rewards import REWARDS, UNIFORM_WEIGHTS, UNIFORM_WEIGHTS_WITHOUT_ZOOM
from zoomzero.rollouts import Rollouts
from zoomzero.rollouts.corrections import SamplingGap
from zoomzero.training.run_log import SampledGroup
from zoomzero.training.scoring import Scores


class Metrics(dict[str, float]):
    """Figures by name, each set once per batch."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Keep the seconds of the block as seconds/<name>; on a GPU, of what the block waited for."""
        start = time.perf_counter()
        yield
        self[f"seconds/{name}"] = time.perf_counter() - start


@dataclass(frozen=True)
class ShownResponses:
    """Responses with what they are to be shown with: question, text, rewards and mean advantage of each."""

    questions: list[str]
    """Of the row that each response answers."""
    texts: list[str]
    """Decoded, tags included, without end and padding tokens."""
    rewards: Tensor
    """float32 [B, 4] in the order of `REWARDS`."""
    advantages: list[float]
    """Mean over the tokens of each response."""


@dataclass(frozen=True)
class RolloutTable:
    """What the figures of B responses are made of, on the CPU."""

    rewards: Tensor
    """float32 [B, 4] in the order of `REWARDS`."""
    lengths: Tensor
    """float32 [B], in tokens."""
    stopped: Tensor
    """bool [B]: ended by itself."""
    without_span: Tensor
    """bool [B]: names no span inside the video."""
    num_zoom_prompts: int
    """Distinct prompts that the zoom pass scored."""

    @staticmethod
    def of(rollouts: Rollouts, scores: Scores) -> RolloutTable:
        """The table of a batch."""
        lengths, stopped = rollouts.mask.sum(-1).float().cpu(), rollouts.stopped.cpu()
        without = torch.tensor([not spans for spans in scores.spans])
        return RolloutTable(scores.rewards.cpu(), lengths, stopped, without, scores.num_zoom_prompts)

    @staticmethod
    def joined(tables: Sequence[RolloutTable]) -> RolloutTable:
        """Several tables as one."""
        return RolloutTable(
            rewards=torch.cat([table.rewards for table in tables]),
            lengths=torch.cat([table.lengths for table in tables]),
            stopped=torch.cat([table.stopped for table in tables]),
            without_span=torch.cat([table.without_span for table in tables]),
            num_zoom_prompts=sum(table.num_zoom_prompts for table in tables),
        )

    def metrics(self, *, zoom_reward: bool) -> dict[str, float]:
        """Rewards, grounding and zoom quality, lengths.

        reward is plain GRPO's total, whatever the credit; reward_std is over the batch.
        """
        weights = torch.tensor(UNIFORM_WEIGHTS if zoom_reward else UNIFORM_WEIGHTS_WITHOUT_ZOOM)
        total = self.rewards @ weights
        means = dict(zip(REWARDS, self.rewards.mean(0).tolist(), strict=True))
        metrics = {f"rewards/{name}/mean": mean for name, mean in means.items()}
        metrics |= {
            "reward": float(total.mean()),
            "reward_std": float(total.std()),
            "miou": means["iou"],
            "fraction_without_span": float(self.without_span.float().mean()),
            "completions/mean_length": float(self.lengths.mean()),
            "completions/max_length": float(self.lengths.max()),
            "completions/clipped_ratio": float((~self.stopped).float().mean()),
        }
        if zoom_reward:
            metrics |= {"zoom_accuracy": means["zoom"], "zoom_prompts": float(self.num_zoom_prompts)}
        return metrics


@dataclass
class Share:
    """What one process has to tell the others about its share of a generation batch."""

    num_rows: int
    """Groups that it was given."""
    num_groups: int = 0
    """Groups whose videos could be read."""
    num_filtered: int = 0
    """Groups that online filtering leaves out of the loss."""
    num_items: int = 0
    """Tokens that the loss takes."""
    table: RolloutTable | None = None
    """What the figures are made of, None without a group."""
    shown: ShownResponses | None = None
    """The responses as texts, None without a group."""
    sampling: SamplingGap | None = None
    """How far the sampler was from the policy, where it is another."""
    sampled: SampledGroup | None = None
    """One group token by token, of the first process only."""
    skipped: list[list[str]] = field(default_factory=list)
    """Samples skipped so far."""
    seconds: Metrics = field(default_factory=Metrics)
    """By phase."""


def joined_metrics(shares: Sequence[Share], *, zoom_reward: bool, online_filter: bool) -> Metrics:
    """What is logged of a generation batch; seconds are means over the processes."""
    metrics = Metrics()
    for name in dict.fromkeys(name for share in shares for name in share.seconds):
        spent = [share.seconds[name] for share in shares if name in share.seconds]
        metrics[name] = sum(spent) / len(spent)
    tables = [share.table for share in shares if share.table is not None]
    if tables:
        metrics |= RolloutTable.joined(tables).metrics(zoom_reward=zoom_reward)
    metrics |= SamplingGap.metrics([share.sampling for share in shares if share.sampling is not None])
    num_groups = sum(share.num_groups for share in shares)
    metrics["skipped_fraction"] = 1 - num_groups / sum(share.num_rows for share in shares)
    if online_filter and num_groups:
        metrics["filtered_fraction"] = sum(share.num_filtered for share in shares) / num_groups
    return metrics
