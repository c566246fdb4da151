"""`ZoomZeroConfig`: TRL's GRPO settings and the method's, checked before anything is loaded."""

import os
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from zoomzero.limits import TIME_LIMIT_SECONDS
from zoomzero.rewards import credit_matrix
from zoomzero.skipping import check_skipped_fraction
from zoomzero.training.settings import CREDITS, ZOOM_SCORERS, TrainingSettings
from zoomzero_kernels.policy.objectives import LOSS_TYPES
from zoomzero_kernels.token_advantages import NORMALIZATIONS

AT_LEAST_ONE = (
    "max_completion_length",
    "feature_cache_bytes",
    "frame_cache_bytes",
    "num_decoders",
    "forward_tokens",
)

# Settings of TRL that change what a step computes and that this trainer does not implement: (name, the only value, what
# to do instead). A setting that would silently do nothing is an error.
UNSUPPORTED: tuple[tuple[str, Any, str], ...] = (
    ("use_transformers_continuous_batching", False, "generation runs in the trainer"),
    ("top_p", 1.0, "rollouts are drawn from the policy itself; use temperature"),
    ("top_k", 0, "rollouts are drawn from the policy itself; use temperature"),
    ("min_p", None, "rollouts are drawn from the policy itself; use temperature"),
    ("repetition_penalty", 1.0, "rollouts are drawn from the policy itself; use temperature"),
    ("generation_kwargs", None, "use temperature and max_completion_length"),
    ("cache_implementation", None, "the group-shared cache is the only one"),
    ("multi_objective_aggregation", "sum_then_normalize", "choose advantage_normalize instead"),
    ("scale_rewards", "group", "choose advantage_normalize instead"),
    ("importance_sampling_level", "token", "advantages differ by token"),
    ("top_entropy_quantile", 1.0, "every token of a response is trained"),
    ("entropy_coef", 0.0, "the loss has no entropy bonus"),
    ("use_adaptive_entropy", False, "the loss has no entropy bonus"),
    ("off_policy_mask_threshold", None, "responses come from the policy"),
    ("use_bias_correction_kl", False, "the KL term is the clamped k3 estimate"),
    ("sync_ref_model", False, "the reference stays the start model"),
    ("router_aux_loss_coef", None, "the supported families have no experts"),
    (
        "cast_lm_head_to_fp32",
        False,
        "the logits have the dtype of the head's weight and the loss float32; load the model in float32",
    ),
    (
        "load_best_model_at_end",
        False,
        "it would restore nothing (see the trainer's _load_from_checkpoint); load the folder",
    ),
    ("use_liger_kernel", False, "the loss never holds the logits anyway"),
    ("chat_template_kwargs", None, "the processor's prompts are the checkpoint's own"),
    ("pad_to_multiple_of", None, "packed rows have no fixed length"),
)
# The same for vLLM's settings, where it is used.
UNSUPPORTED_OF_VLLM: tuple[tuple[str, Any, str], ...] = (
    ("vllm_mode", "colocate", "a server of TRL takes no features; they are handed over inside the process"),
    ("vllm_model_impl", "vllm", "its own models take features"),
    ("vllm_tensor_parallel_size", 1, "each process samples for its own rows"),
    ("vllm_structured_outputs_regex", None, "the format reward teaches the format"),
)


@dataclass
class ZoomZeroConfig(TrainingSettings, GRPOConfig):  # type: ignore[misc]  # None has no meaning in ours
    """TRL's `GRPOConfig` with the method's settings; unsupported combinations raise ValueError at construction.

    Settings and defaults of `TrainingSettings` take precedence over TRL's.
    """

    steps_per_generation: int = field(  # type: ignore[assignment]  # TRL fills it in from the batch sizes
        default=None,
        metadata={"help": "Micro-batches a generation batch is trained in; gradient accumulation unless set."},
    )
    use_bias_correction_kl: bool = field(
        default=False, metadata={"help": "Must stay off: the KL term is the clamped k3 estimate of the paper."}
    )

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_processes()
        super().__post_init__()
        self._check_supported()
        if self.per_device_train_batch_size % self.num_generations:
            raise ValueError(
                "ZoomZeroConfig: per_device_train_batch_size must be a multiple of num_generations, because a packed "
                f"row holds a whole group, got {self.per_device_train_batch_size} and {self.num_generations}; "
                f"use {-(-self.per_device_train_batch_size // self.num_generations) * self.num_generations}"
            )

        self._check_launch()

    def _check_launch(self) -> None:
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != self.world_size:
            raise ValueError(
                f"ZoomZeroConfig: the processes of a launch must train together, got {launched} processes and a world "
                f"of {self.world_size}; on a machine without a GPU set use_cpu=True"
            )

    def _check_processes(self) -> None:
        """Many processes share a step by DDP or FSDP2; accelerate would ignore other plans on a CPU without a word."""
        asked = [
            name
            for name, wanted in (
                ("DeepSpeed", bool(self.deepspeed) or _is_set("ACCELERATE_USE_DEEPSPEED")),
                ("Megatron-LM", _is_set("ACCELERATE_USE_MEGATRON_LM")),
            )
            if wanted
        ]
        if asked:
            raise ValueError(
                f"ZoomZeroConfig: several processes train by DDP or FSDP2, got {' and '.join(asked)}; launch with "
                "accelerate's multi-GPU, multi-CPU or FSDP setting"
            )

    @property
    def is_off_policy(self) -> bool:
        """Whether tokens are weighed by the ratio to the policy that sampled them.

        So it is where some micro-batch is trained after the weights that generated it have changed: TRL's own rule.
        """
        return self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) != 0

    @property
    def needs_reference(self) -> bool:
        """Whether something is asked of the frozen start model."""
        return self.beta > 0 or (self.zoom_reward and self.zoom_scorer == "reference")

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one. transformers would split a batch over all it sees (DataParallel), and a packed
        row's positions [3, rows, length] along the wrong axis."""
        return min(super().n_gpu, 1)

    def _check_choices(self) -> None:
        for name, choices in (
            *([("credit", CREDITS)] if isinstance(self.credit, str) else []),
            ("advantage_normalize", NORMALIZATIONS),
            ("zoom_scorer", ZOOM_SCORERS),
            ("loss_type", LOSS_TYPES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ZoomZeroConfig: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}; pick one"
                )
        credit_matrix(self.credit, zoom_reward=self.zoom_reward, weights=self.reward_weights)
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"ZoomZeroConfig: {name} must be at least 1, got {getattr(self, name)}; raise it")
        if self.read_ahead_bytes < 0:
            raise ValueError(
                f"ZoomZeroConfig: read_ahead_bytes must be at least 0, got {self.read_ahead_bytes}; 0 reads nothing "
                "ahead"
            )
        if self.video_time_limit is not None and not self.video_time_limit > 0:
            raise ValueError(
                f"ZoomZeroConfig: video_time_limit must be positive seconds or None, got {self.video_time_limit}; "
                f"{TIME_LIMIT_SECONDS:g} is usual"
            )
        check_skipped_fraction("ZoomZeroConfig", self.max_skipped_fraction)
        if not self.temperature > 0:
            raise ValueError(
                f"ZoomZeroConfig: temperature must be above 0, got {self.temperature}; a group needs differing rollouts"
            )

    def _check_supported(self) -> None:
        for name, only, instead in (*UNSUPPORTED, *(UNSUPPORTED_OF_VLLM if self.use_vllm else ())):
            value = getattr(self, name)
            # TRL spells "no limit" of top_k as 0, -1 or None.
            if value != only and not (name == "top_k" and value in (None, -1)):
                raise ValueError(
                    f"ZoomZeroConfig: {name} must stay {only!r}, got {value!r}; this trainer does not implement it: "
                    f"{instead}"
                )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
