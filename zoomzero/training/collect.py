"""One generation batch: rows -> prompts -> rollouts -> scores -> advantages -> the groups that the loss takes.

Note [Where a step's work goes]
TRL keeps the loop (sampling of rows, gradient accumulation, optimizer, checkpoints, logs). A step's work is ours and
is done once per group, not once per rollout: frames are decoded and (frozen tower) encoded once and cached; the prompt
is prefilled once and its keys are shared; the zoom pass answers each distinct set of zoomed frames once; the
reference's and the policy's log-probabilities run on packed rows; the loss goes from hidden states to gradients without
holding logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero.looks import PreparedPrompt, through_tower
from zoomzero.looks.rows import RowEncoder
from zoomzero.models.batches import CACHED_PER_FORWARD, by_tokens
from zoomzero.responses import Response, token_segments
from zoomzero.rewards import credit_matrix, informative_groups
from zoomzero.rollouts import Rollouts, Sampler, SamplingOptions
from zoomzero.rollouts.corrections import SamplingGap, importance_weights
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.skipping import Skipping
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.groups import GroupBatch, group_rows, join_rollouts
from zoomzero.training.loss import group_logps
from zoomzero.training.metrics import Metrics, RolloutTable, Share, ShownResponses, joined_metrics
from zoomzero.training.packing import PackedForward
from zoomzero.training.reference import Reference
from zoomzero.training.run_log import SampledGroup, sampled_group
from zoomzero.training.scoring import Scores, score, taken_apart
from zoomzero_kernels import token_advantages

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Collected:
    """This process's share of a generation batch, and what is known of all shares."""

    groups: GroupBatch
    """What the loss takes; empty if no video could be read. num_items counts the tokens of all processes."""
    metrics: Metrics
    """Figures to log, of all processes."""
    shown: list[ShownResponses]
    """The responses as texts, of all processes."""
    sampled: SampledGroup | None
    """The first group token by token, for the run's log; None without a group in the first process."""


class Collector:
    """Makes generation batches from dataset rows.

    Args:
        config: the trainer's settings.
        accelerator: of the trainer; for its device and mixed precision.
        encoder: turns rows into prompts.
        skipping: where unreadable videos are written down.
        reference: to the frozen start model, None where nothing needs it.
        end_token_ids: tokens that end a response.
        sampler: what samples in place of the policy's own loop.
    """

    def __init__(
        self,
        config: ZoomZeroConfig,
        accelerator: Accelerator,
        encoder: RowEncoder,
        skipping: Skipping,
        reference: Reference | None,
        end_token_ids: Sequence[int],
        sampler: Sampler | None = None,
    ) -> None:
        if config.beta > 0 and reference is None:
            raise ValueError(
                f"Collector: beta > 0 needs the reference model, got beta={config.beta} and none; pass the start model"
            )
        self._config, self._accelerator = config, accelerator
        self._encoder, self._skipping, self._reference = encoder, skipping, reference
        self._tokenizer = encoder.processor.tokenizer
        self._end_token_ids = tuple(end_token_ids)
        self._sampler = sampler
        self._credit = credit_matrix(config.credit, zoom_reward=config.zoom_reward, weights=config.reward_weights)

    @torch.no_grad()
    def collect(self, inputs: Sequence[Row], policy: PreTrainedModel, group_size: int, *, training: bool) -> Collected:
        """The batch of `inputs`, in which each row stands `group_size` times in a run.

        A group whose video cannot be read is left out; the batch may be empty for it.

        Raises:
            VideoError: the videos of more than max_skipped_fraction of the samples are unreadable.
        """
        all_rows = group_rows(inputs, group_size)
        share = Share(num_rows=len(all_rows))
        read_before = self._encoder.read_seconds
        with share.seconds.phase("frames"):
            found = self._encoder.prepare_coarse(all_rows)
        rows, prompts = self._skipping.readable(all_rows, found, training=training)
        groups = GroupBatch.empty(self._accelerator.device)
        if rows:
            groups = self._scored_groups(rows, prompts, policy, group_size, share, training=training)
        self._encoder.end_batch(all_rows)
        share.seconds["seconds/waited_for_frames"] = self._encoder.read_seconds - read_before
        share.num_groups, share.num_items = len(groups.prompts), groups.num_items
        share.skipped = self._skipping.state(training=training)
        return self._joined(groups, share, training=training)

    def _joined(self, groups: GroupBatch, share: Share, *, training: bool) -> Collected:
        """The batch with what the other processes tell of theirs; every process calls this, one without a group too."""
        shares: list[Share] = gather_object([share]) if self._accelerator.num_processes > 1 else [share]
        for other in shares:
            self._skipping.take_in(other.skipped, training=training)
        config = self._config
        metrics = joined_metrics(shares, zoom_reward=config.zoom_reward, online_filter=config.online_filter)
        metrics["num_skipped"] = self._skipping.num_skipped(training=training)
        groups = dataclasses.replace(groups, num_items=sum(other.num_items for other in shares))
        shown = [other.shown for other in shares if other.shown is not None]
        return Collected(groups, metrics, shown, next((other.sampled for other in shares if other.sampled), None))

    def _scored_groups(
        self,
        rows: list[Row],
        prompts: list[PreparedPrompt],
        policy: PreTrainedModel,
        group_size: int,
        share: Share,
        *,
        training: bool,
    ) -> GroupBatch:
        """Rollouts and what the loss needs of them; an empty batch if the zoom pass could read none of the videos."""
        with share.seconds.phase("generation"):
            rollouts = self._sample(policy, prompts, group_size)
        repeated = [row for row in rows for _ in range(group_size)]
        responses = self._responses(rollouts, repeated)
        with share.seconds.phase("rewards"), self._accelerator.autocast(), self._zoom_scorer(policy) as scorer:
            scores = score(self._encoder, scorer, repeated, responses, self._config.forward_tokens)
        if scores.unreadable:
            found = [scores.unreadable.get(row["video"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
            rows, prompts = self._skipping.readable(rows, found, training=training)
            kept = [index for index, row in enumerate(repeated) if row["video"] not in scores.unreadable]
            rollouts, scores = rollouts.select(kept), scores.select(kept)
            responses = [responses[index] for index in kept]
        if not rows:
            return GroupBatch.empty(self._accelerator.device)
        mask = self._trained_tokens(rollouts, scores, group_size, share)
        segments = self._segments(responses, rollouts)
        advantages = self._advantages(scores, segments, mask, group_size)
        groups = GroupBatch(
            prompts=prompts,
            token_ids=rollouts.token_ids,
            mask=mask,
            advantages=advantages,
            old_logps=rollouts.logps if self._config.is_off_policy else None,
            ref_logps=None,
            token_weights=None,
            num_items=int(mask.sum()),
            segments=segments,
        )
        if self._sampler is not None and self._config.vllm_importance_sampling_correction:
            groups = self._corrected(groups, rollouts, policy, share)
        if self._config.beta > 0 and self._reference is not None:
            with share.seconds.phase("reference"), self._reference.use() as reference:
                logps = self._logps(reference, groups, rollouts.mask)
            groups = dataclasses.replace(groups, ref_logps=logps)
        share.table = RolloutTable.of(rollouts, scores)
        means = advantages.sum(-1) / rollouts.mask.sum(-1).clamp(min=1)
        questions = [row["question"] for row in rows for _ in range(group_size)]
        texts = [response.text for response in responses]
        share.shown = ShownResponses(questions, texts, scores.rewards, means.tolist())
        if self._accelerator.is_main_process:
            share.sampled = sampled_group(rows[0], groups, rollouts.mask[:group_size], scores.rewards, self._tokenizer)
        return groups

    def _zoom_scorer(self, policy: PreTrainedModel) -> contextlib.AbstractContextManager[PreTrainedModel | None]:
        if not self._config.zoom_reward:
            return contextlib.nullcontext()
        if self._config.zoom_scorer == "policy" or self._reference is None:
            return contextlib.nullcontext(policy)
        return self._reference.use()

    def _sample(self, policy: PreTrainedModel, prompts: list[PreparedPrompt], group_size: int) -> Rollouts:
        options = SamplingOptions(
            max_new_tokens=self._config.max_completion_length,
            eos_token_ids=self._end_token_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            num_generations=group_size,
            temperature=self._config.temperature,
            max_prefill_tokens=self._config.forward_tokens,
        )
        sample = self._sampler or functools.partial(generate, policy)
        batches = [range(len(prompts))]
        if self._sampler is None:  # an inference engine makes its own batches
            written = group_size * options.max_new_tokens
            lengths = [len(prompt.input_ids) + written for prompt in prompts]
            batches = by_tokens(lengths, CACHED_PER_FORWARD * self._config.forward_tokens)
        with self._accelerator.autocast():
            parts = [sample(through_tower(policy, prompts[batch.start : batch.stop]), options) for batch in batches]
        return join_rollouts(parts, options.pad_token_id)

    def _responses(self, rollouts: Rollouts, asked: Sequence[Row]) -> list[Response]:
        """Decoded responses to the rows, taken apart, without end and padding tokens; tags stay, special or not."""
        ids = [[ids[place] for place in self._places(ids)] for ids in rollouts.token_ids.tolist()]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        thinking = self._encoder.processor.settings.prompts.thinking
        return [taken_apart(text, row, thinking=thinking) for text, row in zip(texts, asked, strict=True)]

    def _places(self, ids: list[int]) -> list[int]:
        """Where the tokens stand that a response is decoded from; a policy may mix them with padding."""
        ends = {*self._end_token_ids, self._tokenizer.pad_token_id}
        return [place for place, token in enumerate(ids) if token not in ends]

    def _trained_tokens(self, rollouts: Rollouts, scores: Scores, group_size: int, share: Share) -> Tensor:
        """bool [P*G, T]: the responses' tokens, without those that the settings leave out of the loss."""
        mask = rollouts.mask
        if self._config.mask_truncated_completions:
            mask = mask & rollouts.stopped[:, None]
        if self._config.online_filter:
            informative = informative_groups(scores.rewards, group_size)
            mask = mask & informative.repeat_interleave(group_size).to(mask.device)[:, None]
            share.num_filtered = int((~informative).sum())
        return mask

    def _segments(self, responses: Sequence[Response], rollouts: Rollouts) -> Tensor:
        """uint8 [P*G, T]: which part of its response each token belongs to."""
        segments = torch.zeros(rollouts.mask.shape, dtype=torch.uint8)
        for row, (ids, response) in enumerate(zip(rollouts.token_ids.tolist(), responses, strict=True)):
            places = self._places(ids)
            segments[row, places] = token_segments([ids[place] for place in places], self._tokenizer, response)
        return segments

    def _advantages(self, scores: Scores, segments: Tensor, mask: Tensor, group_size: int) -> Tensor:
        groups = torch.arange(len(mask)) // group_size
        return token_advantages(
            scores.rewards,
            segments,
            self._credit,
            groups,
            mask.cpu(),
            normalize=self._config.advantage_normalize,
        ).to(mask.device)

    def _corrected(self, groups: GroupBatch, rollouts: Rollouts, policy: PreTrainedModel, share: Share) -> GroupBatch:
        """The groups with weights that make up for a sampler that is not quite the policy, and its own old_logps."""
        config = self._config
        with share.seconds.phase("correction"):
            logps = self._logps(policy, groups, rollouts.mask)
        weights = importance_weights(
            logps,
            rollouts.logps,
            rollouts.mask,
            mode=config.vllm_importance_sampling_mode,
            clip_min=config.vllm_importance_sampling_clip_min,
            clip_max=config.vllm_importance_sampling_clip_max,
        )
        share.sampling = SamplingGap.of(logps, rollouts.logps, rollouts.mask, weights)
        old_logps = None if groups.old_logps is None else logps
        return dataclasses.replace(groups, token_weights=weights, old_logps=old_logps)

    def _logps(self, model: PreTrainedModel, groups: GroupBatch, mask: Tensor) -> Tensor:
        """Log-probabilities of all responses under a model, float32 [P*G, T]."""
        whole = dataclasses.replace(groups, mask=mask)
        written = mask.view(len(groups.prompts), -1).sum(-1).tolist()
        lengths = [len(prompt.input_ids) + tokens for prompt, tokens in zip(groups.prompts, written, strict=True)]
        parts = [whole.part(batch) for batch in by_tokens(lengths, self._config.forward_tokens)]
        forward = PackedForward(model, model)
        with self._accelerator.autocast():
            return torch.cat([group_logps(forward, part, self._config.temperature) for part in parts])
