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

from zoomzero.generation import Rollouts, SamplingOptions, generate
from zoomzero.inputs import VideoInputs, load_processor
from zoomzero.modeling import require_qwen2_5_vl, use_segment_attention
from zoomzero.packing import pack_groups, packed_hidden_states
from zoomzero.responses import token_segments
from zoomzero.trainer.batch import GroupBatch, group_rows, join_rollouts
from zoomzero.trainer.config import ZoomZeroConfig
from zoomzero.trainer.credit import (
    REWARDS,
    UNIFORM_WEIGHTS,
    UNIFORM_WEIGHTS_WITHOUT_ZOOM,
    credit_matrix,
    informative_groups,
)
from zoomzero.trainer.hooks import REMEDY, require_attributes, require_hooks
from zoomzero.trainer.prompts import PreparedPrompt, PromptEncoder, through_tower
from zoomzero.trainer.scoring import Scores, score
from zoomzero_kernels import linear_grpo_loss, linear_selective_logps, token_advantages

COLUMNS = ("video", "question", "options", "answer", "spans")

Rows = Sequence[Mapping[str, Any]]
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
            # Weights are trained in float32 unless told, as in TRL; transformers would take the file's own type.
            keywords = {"dtype": torch.float32, **_keywords(args.model_init_kwargs)}
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, **keywords)
        require_qwen2_5_vl(model)
        if not isinstance(processing_class, VideoInputs):
            raise TypeError(
                f"ZoomZeroTrainer: processing_class must be a VideoInputs, got {type(processing_class).__name__}; use "
                "zoomzero.load_processor(path of the checkpoint)"
            )
        use_segment_attention(model)
        needs_reference = args.beta > 0 or (args.zoom_reward and args.zoom_scorer == "reference")
        self.reference = _frozen_copy(model, share_vision=args.freeze_vision) if needs_reference else None
        model.model.visual.requires_grad_(not args.freeze_vision)
        # TRL loads its own reference by the model's name on the hub when beta > 0; ours is the copy above.
        own_args = copy.copy(args)
        own_args.beta = 0.0
        super().__init__(
            model=model,
            reward_funcs=_rewards_of_a_batch,
            args=own_args,
            train_dataset=_checked_dataset(train_dataset, "train_dataset"),
            eval_dataset=None if eval_dataset is None else _checked_dataset(eval_dataset, "eval_dataset"),
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
        )
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
        """Rows (each repeated for its group) to prompts, rollouts, rewards, advantages and log-probabilities."""
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        rows = group_rows(inputs, group_size)
        with self._phase("frames"):
            prompts = self.encoder.prepare([self.encoder.coarse_look(row) for row in rows])
        with self._phase("generation"):
            rollouts = self._sample(prompts, group_size)
        texts = self._texts(rollouts)
        with self._phase("rewards"), self.accelerator.autocast():
            scorer = self._zoom_scorer() if self.args.zoom_reward else None
            repeated = [row for row in rows for _ in range(group_size)]
            scores = score(self.encoder, scorer, repeated, texts, self.args.zoom_batch_size)
        mask = rollouts.mask
        if self.args.mask_truncated_completions:
            mask = mask & rollouts.stopped[:, None]
        if self.args.online_filter:
            kept = informative_groups(scores.rewards, group_size)
            mask = mask & kept.repeat_interleave(group_size).to(mask.device)[:, None]
            self._record("filtered_fraction", (~kept).float().mean())
        advantages = self._advantages(scores, rollouts, mask, group_size)
        ref_logps = None
        if self.beta > 0:
            with self._phase("reference"):
                ref_logps = self._reference_logps(prompts, rollouts, group_size)
        self._log_rollouts(rollouts, scores, texts, [row["question"] for row in repeated], advantages)
        groups = GroupBatch(
            prompts=prompts,
            token_ids=rollouts.token_ids,
            mask=mask,
            advantages=advantages,
            old_logps=rollouts.logps if self._is_off_policy() else None,
            ref_logps=ref_logps,
            num_items=int(mask.sum()),
        )
        return {"groups": groups}

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

    def _texts(self, rollouts: Rollouts) -> list[str]:
        """Decoded responses without end and padding tokens; tags stay, whether special tokens or not."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        rows = [[token for token in ids if token not in ends] for ids in rollouts.token_ids.tolist()]
        return self._tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _advantages(self, scores: Scores, rollouts: Rollouts, mask: Tensor, group_size: int) -> Tensor:
        segments = torch.zeros(mask.shape, dtype=torch.uint8)
        for row, (ids, keep) in enumerate(zip(rollouts.token_ids.cpu(), rollouts.mask.cpu(), strict=True)):
            length = int(keep.sum())
            segments[row, :length] = token_segments(ids[:length].tolist(), self._tokenizer)
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
        self, rollouts: Rollouts, scores: Scores, texts: list[str], questions: list[str], advantages: Tensor
    ) -> None:
        for name, value in rollout_metrics(rollouts, scores, zoom_reward=self.args.zoom_reward).items():
            self._record(name, value)
        valid = rollouts.mask.sum(-1).clamp(min=1)
        self._logs["prompt"].extend(questions)
        self._logs["completion"].extend(texts)
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


def rollout_metrics(rollouts: Rollouts, scores: Scores, *, zoom_reward: bool) -> dict[str, float]:
    """What a generation batch logs: rewards, grounding and zoom quality, lengths.

    reward is plain GRPO's total, whatever the credit; reward_std is over the batch.
    """
    weights = torch.tensor(UNIFORM_WEIGHTS if zoom_reward else UNIFORM_WEIGHTS_WITHOUT_ZOOM)
    total = scores.rewards @ weights
    lengths = rollouts.mask.sum(-1).float()
    metrics = {f"rewards/{name}/mean": scores.mean(name) for name in REWARDS}
    metrics |= {
        "reward": float(total.mean()),
        "reward_std": float(total.std()),
        "miou": scores.mean("iou"),
        "fraction_without_span": scores.fraction_without_span,
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((~rollouts.stopped).float().mean()),
    }
    if zoom_reward:
        metrics |= {"zoom_accuracy": scores.mean("zoom"), "zoom_prompts": float(scores.num_zoom_prompts)}
    return metrics


def _rewards_of_a_batch(**_: object) -> list[float | None]:
    """TRL demands a reward function. The rewards come from `score`, which needs the whole batch, so a call is a bug."""
    raise RuntimeError(
        "ZoomZeroTrainer: rewards are computed with the batch, got a call of TRL's reward hook; " + REMEDY
    )


def _keywords(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """model_init_kwargs as the configuration holds them: TRL also takes JSON text, and has parsed it by now."""
    return dict(value) if isinstance(value, dict) else {}


def _frozen_copy(
    model: Qwen2_5_VLForConditionalGeneration, *, share_vision: bool
) -> Qwen2_5_VLForConditionalGeneration:
    """The model as it is now, without gradients; a vision tower that is not trained is shared, not copied."""
    visual = model.model.visual
    memo: dict[int, Any] = {id(visual): visual} if share_vision else {}
    frozen = copy.deepcopy(model, memo)
    for name, parameter in frozen.named_parameters():
        if not (share_vision and name.startswith("model.visual.")):
            parameter.requires_grad_(False)
    return frozen.eval()


def _checked_dataset(dataset: Dataset | Rows, name: str) -> Dataset:
    """A datasets.Dataset with the columns that training needs; lists of rows are converted."""
    if not isinstance(dataset, Dataset):
        if not isinstance(dataset, Sequence) or not dataset or not isinstance(dataset[0], Mapping):
            raise TypeError(
                f"ZoomZeroTrainer: {name} must be a datasets.Dataset or a non-empty list of rows, got "
                f"{type(dataset).__name__}; pass a list of dictionaries"
            )
        dataset = Dataset.from_list([dict(row) for row in dataset])
    missing = [column for column in COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"ZoomZeroTrainer: {name} must have the columns {', '.join(COLUMNS)}, got "
            f"{', '.join(dataset.column_names)}; add {', '.join(missing)}"
        )
    return dataset
