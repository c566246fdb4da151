"""GRPO for grounded video question answering on TRL's trainer: its hooks, filled in by `collect` and `loss`.

See Note [Where a step's work goes] in collect.py.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, TrainerCallback

from zoomzero.child_processes import safe_children
from zoomzero.inputs import VideoInputs, load_processor, require_inputs_of
from zoomzero.looks.rows import RowEncoder
from zoomzero.models.adapters import checked_lora, has_adapters, without_wrapper
from zoomzero.models.families import family_of, require_supported
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.models.tokens import end_token_ids
from zoomzero.models.transformers_contract import require_transformers
from zoomzero.rewards import REWARDS
from zoomzero.skipping import Skipping
from zoomzero.training.checkpointing import CheckpointingTrainer
from zoomzero.training.collating import ReadAheadCollator
from zoomzero.training.collect import Collector
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.dataset import Rows, check_num_rows, checked_dataset
from zoomzero.training.groups import GroupBatch
from zoomzero.training.loss import group_loss, stand_in, untouched_loss
from zoomzero.training.metrics import Metrics, ShownResponses
from zoomzero.training.packing import PackedForward
from zoomzero.training.reference import Reference, frozen_copy, start_reference
from zoomzero.training.run_log import RunLog, write_sample
from zoomzero.training.sampler import vllm_sampler
from zoomzero.training.segments import NO_SEGMENT_SUMS, segment_metrics, segment_sums
from zoomzero.training.sharding import RolloutPolicy, settle_sharding
from zoomzero.training.trl_contract import REMEDY, require_attributes, require_hooks
from zoomzero_kernels.policy.objectives import ITEM_LOSS_TYPES

# TRL passes a batch between its hooks as a dictionary; ours has the one entry "groups".
Batch = dict[str, Any]


class ZoomZeroTrainer(CheckpointingTrainer):
    """Trains a Qwen-VL model to name the evidence's spans and to answer right after zooming into them.

    Args:
        model: a model of one of the families of `zoomzero.models`, or the path of one.
        args: ZoomZeroConfig.
        train_dataset, eval_dataset: datasets.Dataset or list of rows with video (path), question, options (texts
            without letters), answer (letter), spans ([start, end] in seconds).
        processing_class: the checkpoint's VideoInputs; loaded from `model` where that is a path.
        callbacks, optimizers, peft_config: as in TRL; a LoRA configuration trains adapters, and the reference is the
            model without them.

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
        model: PreTrainedModel | str,
        args: ZoomZeroConfig,
        train_dataset: Dataset | Rows,
        eval_dataset: Dataset | Rows | None = None,
        processing_class: VideoInputs | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        require_hooks()
        require_transformers()
        if not isinstance(args, ZoomZeroConfig):
            raise TypeError(f"ZoomZeroTrainer: args must be a ZoomZeroConfig, got {type(args).__name__}; build one")
        model, processor = _loaded(model, args, processing_class)
        special_tokens = processor.tokenizer.all_special_tokens
        train_dataset = checked_dataset(train_dataset, "train_dataset", special_tokens)
        check_num_rows(len(train_dataset), cast(int, args.generation_batch_size) // args.num_generations)
        if eval_dataset is not None:
            eval_dataset = checked_dataset(eval_dataset, "eval_dataset", special_tokens)
        use_segment_attention(model)
        if peft_config is not None:
            peft_config = checked_lora(peft_config, freeze_vision=args.freeze_vision)
        copies_start = args.needs_reference and peft_config is None
        start = frozen_copy(model, share_vision=args.freeze_vision) if copies_start else None
        model.model.visual.requires_grad_(not args.freeze_vision)
        # TRL loads its own reference by the model's name on the hub when beta > 0; ours is the copy above.
        own_args = copy.copy(args)
        own_args.beta = 0.0
        # It has one reward function, which stands for all of ours; the weights are in the credit matrix.
        own_args.reward_weights = None
        # It would load vLLM by the model's name, without features; ours is the sampler below.
        own_args.use_vllm = False
        super().__init__(
            model=model,
            reward_funcs=_rewards_of_a_batch,
            args=own_args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processor.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        require_attributes(self)
        self.args.beta = self.beta = args.beta
        self.args.use_vllm = args.use_vllm
        self.args.reward_weights = args.reward_weights
        half = torch.bfloat16 if args.bf16 else None
        self.policy = RolloutPolicy(self.model, sharded=self.is_fsdp_enabled, dtype=half)
        # The step whose weights rollouts are drawn from.
        self._rollout_step: int | None = None
        self.reference: Reference | None = None
        if start is not None:
            self.reference = start_reference(
                start,
                self.accelerator.device,
                half if self.is_fsdp_enabled else None,
                is_offloaded=args.offload_reference,
                shares_vision=args.freeze_vision,
            )
        elif args.needs_reference:
            self.reference = Reference(self.policy.model, has_adapters=True)
        self.encoder = _encoder(processor, self.policy.model, args)
        num_eval = 0 if self.eval_dataset is None else len(cast(Dataset, self.eval_dataset))
        self._skipping = Skipping(
            cast(str, args.output_dir), len(cast(Dataset, self.train_dataset)), num_eval, args.max_skipped_fraction
        )
        ends = end_token_ids(model, processor.tokenizer)
        self._vllm = vllm_sampler(self.policy.model, processor, args) if args.use_vllm else None
        self._collector = Collector(
            self.args, self.accelerator, self.encoder, self._skipping, self.reference, ends, self._vllm
        )
        self.add_callback(RunLog(cast(str, args.output_dir)))
        # The data loader fetches a batch before it hands out the one before it: see read_ahead.py.
        self.data_collator = ReadAheadCollator(self.encoder)

    # -- a step ------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        """TRL's hook before the loss: generate when due, else hand out the next slice of the last batch."""
        if not self.model.training:
            return self._generate_and_score_completions(generation_batch)
        steps = self.args.steps_per_generation
        if self._buffered_inputs is None or self._step % (steps * self.num_iterations) == 0:
            groups: GroupBatch = self._generate_and_score_completions(generation_batch)["groups"]
            self._buffered_inputs = [{"groups": part} for part in groups.split(steps)]
        return self._buffered_inputs[self._step % steps]

    def _generate_and_score_completions(self, inputs: Sequence[Any]) -> Batch:
        """Rows, each repeated for its group, to a batch of groups."""
        training = self.model.training
        metrics = Metrics()
        if self._rollout_step != self.state.global_step:
            with metrics.phase("weights"):
                self.policy.refresh(self._core())
                if self._vllm is not None:
                    self._vllm.load(self.policy.model)
            self._rollout_step = self.state.global_step
        self._record(metrics)
        group_size = self.num_generations if training else self.num_generations_eval
        collected = self._collector.collect(inputs, self.policy.model, group_size, training=training)
        # A count, not a mean: the last one stands for the steps between two logs.
        num_skipped = collected.metrics.pop("num_skipped")
        self._metrics["train" if training else "eval"]["num_skipped"] = [num_skipped]
        self._record(collected.metrics)
        for shown in collected.shown:
            self._log_responses(shown)
        if training and collected.sampled is not None:
            write_sample(cast(str, self.args.output_dir), self.state, collected.sampled)
        return {"groups": collected.groups}

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        """Policy loss of a micro-batch, scaled for gradient accumulation as TRL scales each loss type.

        DDP averages the gradients of the processes; the shares are scaled so that the average is the loss of all their
        responses (tokens for "bnpo"), however many of them each process has.
        """
        groups: GroupBatch = inputs["groups"]
        training, processes = self.model.training, self.accelerator.num_processes
        accumulation = self.current_gradient_accumulation_steps if training else 1
        num_tokens = int(groups.mask.sum())
        share = num_tokens if self.loss_type == "bnpo" else len(groups.token_ids)
        total = self._sum([share])[0]
        forward = PackedForward(model, self._core())
        if not total and accumulation == 1:
            # Every video is unreadable, in all processes: no gradient, and the step goes on.
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        num_items = groups.num_items * accumulation / self.args.steps_per_generation if training else groups.num_items
        metrics = Metrics()
        with metrics.phase("loss"), self.accelerator.autocast():
            if groups.prompts:
                output = group_loss(forward, groups, self.args, max(num_items / processes, 1))
                entropy = float(output.entropy.sum()) / max(num_tokens, 1)
                loss, means = output.loss, (float(output.kl), entropy, float(output.clip_fraction))
                by_segment = segment_sums(groups, output, self.args)
            else:
                loss, means = self._loss_without_groups(forward), (0.0, 0.0, 0.0)
                by_segment = NO_SEGMENT_SUMS
        *sums, weight = self._sum([*by_segment, *(mean * num_tokens for mean in means), num_tokens])
        if total:
            *by_segment, kl, entropy, clipped = sums
            names = ("kl", "entropy", "clip_ratio/region_mean")
            metrics |= {n: value / max(weight, 1) for n, value in zip(names, (kl, entropy, clipped), strict=True)}
            metrics |= segment_metrics(by_segment)
            self._record(metrics)
        if self.loss_type in ITEM_LOSS_TYPES:
            return loss
        return loss * (share * processes / max(total, 1)) / accumulation

    def _loss_without_groups(self, forward: PackedForward) -> Tensor:
        """Nothing to train in this process's micro-batch; in company the wrapper still needs its passes."""
        if self.accelerator.num_processes == 1:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        return untouched_loss(forward, stand_in(self.policy.model, is_encoded=self.args.freeze_vision))

    def _sum(self, values: list[float]) -> list[float]:
        """Sums over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        totals: Tensor = self.accelerator.reduce(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device), reduction="sum"
        )
        return totals.tolist()

    def _core(self) -> PreTrainedModel:
        """The trained model of transformers, inside its wrappers."""
        return without_wrapper(self.accelerator.unwrap_model(self.model))

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers'; weights are sharded as asked, or refused."""
        super().create_accelerator_and_postprocess()
        settle_sharding(self.accelerator, self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def trained_model(self) -> PreTrainedModel:
        """The trained model, whole and in evaluation mode; all processes call it together."""
        self.policy.refresh(self._core())
        return self.policy.model.eval()

    # -- runs --------------------------------------------------------------------------------------------------------

    def train(self, *args: Any, **keywords: Any) -> Any:
        """As TRL's; no background thread outlives it.

        Raises:
            VideoError: the videos of more than max_skipped_fraction of the samples are unreadable.
        """
        self._rollout_step = None
        if not (args[0] if args else keywords.get("resume_from_checkpoint")):
            # A run that was killed before its first checkpoint may have written down what it skipped.
            self._skipping.restore([], write=self.is_world_process_zero())
        try:
            with safe_children():
                return super().train(*args, **keywords)
        finally:
            self.encoder.stop_reading_ahead()

    def evaluate(self, *args: Any, **keywords: Any) -> Any:
        """As TRL's; raises and ends threads as `train`."""
        dataset = args[0] if args else keywords.get("eval_dataset")
        if isinstance(dataset, Dataset):
            self._skipping.evaluate_others(len(dataset))
        try:
            with safe_children():
                return super().evaluate(*args, **keywords)
        finally:
            if not self.is_in_train:
                self.encoder.stop_reading_ahead()

    # -- logs and checkpoints ----------------------------------------------------------------------------------------

    def _record(self, metrics: Metrics) -> None:
        """Add to the metrics that TRL averages over the steps between two logs."""
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _log_responses(self, responses: ShownResponses) -> None:
        self._logs["prompt"].extend(responses.questions)
        self._logs["completion"].extend(responses.texts)
        self._logs["advantages"].extend(responses.advantages)
        for column, name in enumerate(REWARDS):
            self._logs["rewards"][name].extend(responses.rewards[:, column].tolist())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        # A pickle, which nothing here reads.
        (folder / "training_args.bin").unlink(missing_ok=True)
        self.encoder.processor.save_pretrained(folder)
        if has_adapters(self._core()):
            # What says to whoever loads the folder of which family the base is.
            self._core().config.save_pretrained(folder)

    def _send_telemetry(self) -> None:
        """TRL reports each trainer's construction to its hub; training here stays offline."""


def _loaded(
    model: PreTrainedModel | str, args: ZoomZeroConfig, processor: VideoInputs | None
) -> tuple[PreTrainedModel, VideoInputs]:
    """The model and its inputs, loaded where `model` is a path; TypeError, ValueError if they cannot be trained."""
    if isinstance(model, str):
        processor = processor or load_processor(model)
        # Weights are trained in float32 unless told, as in TRL; transformers would take the file's own type.
        # TRL also takes the keywords as JSON text, and has parsed them by now.
        options: dict[str, Any] = {"dtype": torch.float32, **cast(dict[str, Any], args.model_init_kwargs or {})}
        model = family_of(AutoConfig.from_pretrained(model)).model_class().from_pretrained(model, **options)
    require_supported(model)
    if not isinstance(processor, VideoInputs):
        raise TypeError(
            f"ZoomZeroTrainer: processing_class must be a VideoInputs, got {type(processor).__name__}; use "
            "zoomzero.load_processor(path of the checkpoint)"
        )
    require_inputs_of(model, processor)
    return model, processor


def _encoder(processor: VideoInputs, model: PreTrainedModel, args: ZoomZeroConfig) -> RowEncoder:
    """Rows to prompts, with the caches that the settings allow."""
    return RowEncoder(
        processor,
        model,
        freeze_vision=args.freeze_vision,
        feature_bytes=args.feature_cache_bytes,
        frame_bytes=args.frame_cache_bytes,
        ahead_bytes=args.read_ahead_bytes,
        time_limit=args.video_time_limit,
        num_decoders=args.num_decoders,
    )


def _rewards_of_a_batch(**_: object) -> list[float | None]:
    """TRL demands a reward function. The rewards come from `score`, which needs the whole batch, so a call is a bug."""
    raise RuntimeError(
        "ZoomZeroTrainer: rewards are computed with the batch, got a call of TRL's reward hook; " + REMEDY
    )
