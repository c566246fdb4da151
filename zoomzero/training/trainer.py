"""GRPO for grounded video question answering on TRL's trainer: video in every pass, credit by token set, zoom reward.

Note [Where a step's work goes]
TRL keeps the loop (sampling of rows, gradient accumulation, optimizer, checkpoints, logs). A step's work is ours and
is done once a group, not once a rollout: frames are decoded and (frozen tower) encoded once and cached; the prompt is
prefilled once and its keys are shared; the zoom pass answers each distinct set of zoomed frames once; the reference's
and the policy's log-probabilities run on packed rows; the loss goes from hidden states to gradients without holding
logits.
"""

import contextlib
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOTrainer

from zoomzero.inputs import VideoInputs, load_processor, require_qwen2_5_inputs
from zoomzero.looks.encoder import PreparedPrompt, PromptEncoder, through_tower
from zoomzero.models.qwen2_5_vl import require_qwen2_5_vl
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.responses import Response, parse, token_segments
from zoomzero.rewards import REWARDS, credit_matrix, informative_groups
from zoomzero.rollouts import Rollouts, SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.skipping import Skipping
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.dataset import Rows, checked_dataset, frozen_copy, keywords
from zoomzero.training.groups import GroupBatch, group_rows, join_rollouts
from zoomzero.training.packing import pack_groups, packed_hidden_states
from zoomzero.training.scoring import Scores, rollout_metrics, score
from zoomzero.training.trl_contract import REMEDY, require_attributes, require_hooks
from zoomzero_kernels import linear_grpo_loss, linear_selective_logps, token_advantages

# TRL passes a batch between its hooks as a dictionary; ours has the one entry "groups".
Batch = dict[str, Any]


class ZoomZeroTrainer(GRPOTrainer):
    """Trains a Qwen2.5-VL model to name the evidence's spans and to answer right after zooming into them.

    Args:
        model: a Qwen2_5_VLForConditionalGeneration, or the path of one.
        args: ZoomZeroConfig.
        train_dataset, eval_dataset: datasets.Dataset or list of rows with video (path), question, options (texts
            without letters), answer (letter), spans ([start, end] in seconds).
        processing_class: the checkpoint's VideoInputs; loaded from `model` where that is a path.
        callbacks, optimizers: as in TRL.

    Raises:
        TypeError, ValueError: a model, processor, dataset or setting that cannot be trained.
        RuntimeError: TRL's private hooks are not those this trainer was written for.
    """

    args: ZoomZeroConfig
    model: torch.nn.Module
    num_generations: int
    num_generations_eval: int
    max_completion_length: int
    _logs: dict[str, Any]
    _buffered_inputs: Any

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration | str,
        args: ZoomZeroConfig,
        train_dataset: Dataset | Rows,
        eval_dataset: Dataset | Rows | None = None,
        processing_class: VideoInputs | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        require_hooks()
        if not isinstance(args, ZoomZeroConfig):
            raise TypeError(f"ZoomZeroTrainer: args must be a ZoomZeroConfig, got {type(args).__name__}; build one")
        if isinstance(model, str):
            processing_class = processing_class or load_processor(model)
            require_qwen2_5_inputs(processing_class)
            # Weights are trained in float32 unless told, as in TRL; transformers would take the file's own type.
            options = {"dtype": torch.float32, **keywords(args.model_init_kwargs)}
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, **options)
        require_qwen2_5_vl(model)
        if not isinstance(processing_class, VideoInputs):
            raise TypeError(
                f"ZoomZeroTrainer: processing_class must be a VideoInputs, got {type(processing_class).__name__}; use "
                "zoomzero.load_processor(path of the checkpoint)"
            )
        require_qwen2_5_inputs(processing_class)
        use_segment_attention(model)
        needs_reference = args.beta > 0 or (args.zoom_reward and args.zoom_scorer == "reference")
        self.reference = frozen_copy(model, share_vision=args.freeze_vision) if needs_reference else None
        model.model.visual.requires_grad_(not args.freeze_vision)
        # TRL loads its own reference by the model's name on the hub when beta > 0; ours is the copy above.
        own_args = copy.copy(args)
        own_args.beta = 0.0
        super().__init__(
            model=model,
            reward_funcs=_rewards_of_a_batch,
            args=own_args,
            train_dataset=checked_dataset(train_dataset, "train_dataset"),
            eval_dataset=None if eval_dataset is None else checked_dataset(eval_dataset, "eval_dataset"),
            processing_class=processing_class.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        require_attributes(self)
        self.args.beta = self.beta = args.beta
        if self.reference is not None:
            self.reference.to(self.accelerator.device)
        self.encoder = PromptEncoder(
            processing_class,
            model,
            freeze_vision=args.freeze_vision,
            feature_bytes=args.feature_cache_bytes,
            frame_bytes=args.frame_cache_bytes,
            ahead_bytes=args.read_ahead_bytes,
            time_limit=args.video_time_limit,
        )
        num_eval = 0 if self.eval_dataset is None else len(cast(Dataset, self.eval_dataset))
        self._skipping = Skipping(
            cast(str, args.output_dir), len(cast(Dataset, self.train_dataset)), num_eval, args.max_skipped_fraction
        )
        # The data loader fetches a batch before it hands out the one before it: see read_ahead.py.
        self.data_collator = self._read_ahead
        self.credit = credit_matrix(args.credit, zoom_reward=args.zoom_reward)

    # -- one generation batch ------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        """TRL's hook before the loss: generate when due, else hand out the next slice of the last batch."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        if self._buffered_inputs is None or self._step % (steps * self.num_iterations) == 0:
            groups: GroupBatch = self._generate_and_score_completions(generation_batch)["groups"]
            self._buffered_inputs = [{"groups": part} for part in groups.split(steps)]
        return self._buffered_inputs[self._step % steps]

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: Any) -> Batch:
        """Rows (each repeated for its group) to prompts, rollouts, rewards, advantages and log-probabilities.

        A group whose video cannot be read is left out; the batch may be empty for it.
        """
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        all_rows = group_rows(inputs, group_size)
        with self._phase("frames"):
            found = self.encoder.prepare_coarse(all_rows)
        rows, prompts = self._skipping.readable(all_rows, found, training=self.model.training)
        groups = self._scored_groups(rows, prompts, group_size) if rows else None
        self.encoder.end_batch(all_rows)
        num_kept = 0 if groups is None else len(groups.prompts)
        self._record("skipped_fraction", 1 - num_kept / len(all_rows))
        # A count, not a mean: the last one stands for the steps between two logs.
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["num_skipped"] = [self._skipping.num_skipped(training=self.model.training)]
        return {"groups": groups or GroupBatch.empty(self.accelerator.device)}

    def _scored_groups(
        self, rows: list[Mapping[str, Any]], prompts: list[PreparedPrompt], group_size: int
    ) -> GroupBatch | None:
        """Rollouts and what the loss needs of them; None if the zoom pass could read none of the videos."""
        with self._phase("generation"):
            rollouts = self._sample(prompts, group_size)
        responses = self._responses(rollouts)
        with self._phase("rewards"), self.accelerator.autocast():
            scorer = self._zoom_scorer() if self.args.zoom_reward else None
            repeated = [row for row in rows for _ in range(group_size)]
            scores = score(self.encoder, scorer, repeated, responses, self.args.zoom_batch_size)
        if scores.unreadable:
            found = [scores.unreadable.get(row["video"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
            rows, prompts = self._skipping.readable(rows, found, training=self.model.training)
            kept = [index for index, row in enumerate(repeated) if row["video"] not in scores.unreadable]
            rollouts, scores = rollouts.select(kept), scores.select(kept)
            responses = [responses[index] for index in kept]
        if not rows:
            return None
        mask = rollouts.mask
        if self.args.mask_truncated_completions:
            mask = mask & rollouts.stopped[:, None]
        if self.args.online_filter:
            informative = informative_groups(scores.rewards, group_size)
            mask = mask & informative.repeat_interleave(group_size).to(mask.device)[:, None]
            self._record("filtered_fraction", (~informative).float().mean())
        advantages = self._advantages(scores, responses, rollouts, mask, group_size)
        ref_logps = None
        if self.beta > 0:
            with self._phase("reference"):
                ref_logps = self._reference_logps(prompts, rollouts, group_size)
        self._log_rollouts(
            rollouts, scores, responses, [row["question"] for row in rows for _ in range(group_size)], advantages
        )
        return GroupBatch(
            prompts=prompts,
            token_ids=rollouts.token_ids,
            mask=mask,
            advantages=advantages,
            old_logps=rollouts.logps if self._is_off_policy() else None,
            ref_logps=ref_logps,
            num_items=int(mask.sum()),
        )

    # -- videos --------------------------------------------------------------------------------------------------

    def _read_ahead(self, rows: Any) -> Any:
        """The collator: rows as they are, after their videos were handed to the background threads."""
        # In a process of the loader there is no model to overlap with, and no way back for what was read.
        if torch.utils.data.get_worker_info() is None:
            self.encoder.read_ahead(rows)
        return rows

    def train(self, *args: Any, **keywords: Any) -> Any:
        """As TRL's; no background thread outlives it.

        Raises:
            VideoError: the videos of more than max_skipped_fraction of the samples are unreadable.
        """
        try:
            return super().train(*args, **keywords)
        finally:
            self.encoder.stop_reading_ahead()

    def evaluate(self, *args: Any, **keywords: Any) -> Any:
        """As TRL's; raises and ends threads as `train`."""
        dataset = args[0] if args else keywords.get("eval_dataset")
        if isinstance(dataset, Dataset):
            self._skipping.evaluate_others(len(dataset))
        try:
            return super().evaluate(*args, **keywords)
        finally:
            if not self.is_in_train:
                self.encoder.stop_reading_ahead()

    # -- rollouts and their scores -------------------------------------------------------------------------------

    def _is_off_policy(self) -> bool:
        """Whether some micro-batch is trained after the weights that generated it have changed (TRL's own rule)."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        return self.args.gradient_accumulation_steps % generate_every != 0

    def _policy(self) -> Qwen2_5_VLForConditionalGeneration:
        return self.accelerator.unwrap_model(self.model)

    def _zoom_scorer(self) -> Qwen2_5_VLForConditionalGeneration:
        return self._policy() if self.args.zoom_scorer == "policy" or self.reference is None else self.reference

    def _sample(self, prompts: list[PreparedPrompt], group_size: int) -> Rollouts:
        options = SamplingOptions(
            max_new_tokens=self.max_completion_length,
            eos_token_ids=tuple(self.eos_token_ids),
            pad_token_id=self._tokenizer.pad_token_id,
            num_generations=group_size,
            temperature=self.temperature,
        )
        policy, size = self._policy(), self.args.generation_prompts
        with self.accelerator.autocast():
            parts = [
                generate(policy, through_tower(policy, prompts[start : start + size]), options)
                for start in range(0, len(prompts), size)
            ]
        return join_rollouts(parts, options.pad_token_id)

    def _responses(self, rollouts: Rollouts) -> list[Response]:
        """Decoded responses, taken apart, without end and padding tokens; tags stay, whether special tokens or not."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        rows = [[token for token in ids if token not in ends] for ids in rollouts.token_ids.tolist()]
        texts = self._tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        thinking = self.encoder.processor.settings.prompts.thinking
        return [parse(text, thinking=thinking) for text in texts]

    def _advantages(
        self, scores: Scores, responses: Sequence[Response], rollouts: Rollouts, mask: Tensor, group_size: int
    ) -> Tensor:
        segments = torch.zeros(mask.shape, dtype=torch.uint8)
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        for row, (ids, response) in enumerate(zip(rollouts.token_ids.tolist(), responses, strict=True)):
            # The tokens that the response was decoded from, which a policy may mix with padding.
            places = [place for place, token in enumerate(ids) if token not in ends]
            segments[row, places] = token_segments([ids[place] for place in places], self._tokenizer, response)
        groups = torch.arange(len(mask)) // group_size
        return token_advantages(
            scores.rewards,
            segments,
            self.credit,
            groups,
            mask.cpu(),
            normalize=self.args.advantage_normalize,
        ).to(mask.device)

    def _reference_logps(self, prompts: list[PreparedPrompt], rollouts: Rollouts, group_size: int) -> Tensor:
        """Log-probabilities of the rollouts under the frozen start model, float32 [P*G, T], from packed rows."""
        if self.reference is None:
            raise RuntimeError(
                "ZoomZeroTrainer: beta > 0 needs the reference model, got none; set beta before construction"
            )
        size = max(1, self.args.per_device_train_batch_size // group_size)
        parts = []
        for start in range(0, len(prompts), size):
            rows = slice(start * group_size, (start + size) * group_size)
            ids = rollouts.token_ids[rows]
            hidden = self._hidden_states(self.reference, prompts[start : start + size], ids, rollouts.mask[rows])
            logps = linear_selective_logps(hidden, self.reference.lm_head.weight, ids, temperature=self.temperature)
            parts.append(cast(Tensor, logps))
        return torch.cat(parts)

    def _hidden_states(
        self, model: Qwen2_5_VLForConditionalGeneration, prompts: list[PreparedPrompt], token_ids: Tensor, mask: Tensor
    ) -> Tensor:
        with self.accelerator.autocast():
            encoded = through_tower(model, prompts)
            packed = pack_groups(encoded, token_ids, mask, video_token_id=model.config.video_token_id)
            return packed_hidden_states(model, packed).to(model.lm_head.weight.dtype)

    # -- the loss ------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Policy loss of a micro-batch, scaled for gradient accumulation as TRL scales each loss type."""
        policy = self.accelerator.unwrap_model(model)
        groups: GroupBatch = inputs["groups"]
        if not groups.prompts:
            # Every video of the micro-batch is unreadable: no gradient, and the step goes on.
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        training = self.model.training
        accumulation = self.current_gradient_accumulation_steps if training else 1
        num_items = groups.num_items * accumulation / self.args.steps_per_generation if training else groups.num_items
        with self._phase("loss"):
            hidden = self._hidden_states(policy, groups.prompts, groups.token_ids, groups.mask)
            output = linear_grpo_loss(
                hidden,
                policy.lm_head.weight,
                groups.token_ids,
                groups.advantages,
                groups.mask,
                old_logps=groups.old_logps,
                ref_logps=groups.ref_logps,
                temperature=self.temperature,
                beta=self.beta,
                clip_low=self.epsilon_low,
                clip_high=self.epsilon_high,
                loss_type=self.loss_type,
                max_completion_length=self.max_completion_length,
                num_items=max(num_items, 1),
            )
        valid = groups.mask.sum().clamp(min=1)
        self._record("kl", output.kl)
        self._record("entropy", output.entropy.sum() / valid)
        self._record("clip_ratio/region_mean", output.clip_fraction)
        return output.loss if self.loss_type == "dapo" else output.loss / accumulation

    # -- logs and checkpoints ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Log the seconds of the block as seconds/<name>; on a GPU, of what the block waited for."""
        start = time.perf_counter()
        yield
        self._record(f"seconds/{name}", time.perf_counter() - start)

    def _record(self, name: str, value: Tensor | float) -> None:
        """Add to a metric that TRL averages over the steps between two logs."""
        self._metrics["train" if self.model.training else "eval"][name].append(float(value))

    def _log_rollouts(
        self,
        rollouts: Rollouts,
        scores: Scores,
        responses: Sequence[Response],
        questions: list[str],
        advantages: Tensor,
    ) -> None:
        for name, value in rollout_metrics(rollouts, scores, zoom_reward=self.args.zoom_reward).items():
            self._record(name, value)
        valid = rollouts.mask.sum(-1).clamp(min=1)
        self._logs["prompt"].extend(questions)
        self._logs["completion"].extend(response.text for response in responses)
        self._logs["advantages"].extend((advantages.sum(-1) / valid).tolist())
        for column, name in enumerate(REWARDS):
            self._logs["rewards"][name].extend(scores.rewards[:, column].tolist())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        self.encoder.processor.save_pretrained(cast(str, output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Weights of a checkpoint into the model.

        transformers' own method loads the file's names as they are, but save_pretrained wrote Qwen2.5-VL's weights
        under the published names: nothing would match and training would silently resume from the start model.
        """
        saved = Qwen2_5_VLForConditionalGeneration.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (model or self.model).load_state_dict(saved.state_dict())

    def _send_telemetry(self) -> None:
        """TRL reports each trainer's construction to its hub; training here stays offline."""


def _rewards_of_a_batch(**_: object) -> list[float | None]:
    """TRL demands a reward function. The rewards come from `score`, which needs the whole batch, so a call is a bug."""
    raise RuntimeError(
        "ZoomZeroTrainer: rewards are computed with the batch, got a call of TRL's reward hook; " + REMEDY
    )
