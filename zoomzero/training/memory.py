"""What training needs of a card's memory, estimated from config and settings before anything is loaded.

Note [Phases of a step]: not everything lives at once. Weights and optimizer states always do; keys and values while
responses are written; the reference's weights always, or while it works where it is offloaded; activations from the
forward to the backward pass; gradients from the backward pass to the optimizer's step, those of earlier micro-batches
during a forward too. The estimate is the phase that needs most. Activations are counted on the real layers (see
kept_activations.py); the rest is arithmetic. What CUDA's allocator wastes is not in it. Not measured on a GPU.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from zoomzero.answering.memory import GIB, TEXT_TOKENS, free_bytes, key_value_bytes, text_layer_values, vision_values
from zoomzero.models.batches import CACHED_PER_FORWARD
from zoomzero.models.encoding import PATCHES_PER_RUN
from zoomzero.models.kept_activations import full_groups, kept_activations, meta_model
from zoomzero.models.loading import BUILT_IN, checkpoint_file
from zoomzero.settings import SETTINGS_FILE, ZoomSettings
from zoomzero.training.weights import weights_dtype

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from zoomzero.models.packed_attention import PackedLengths
    from zoomzero.training.config import ZoomZeroConfig

FLOAT, HALF = 4, 2
# First and second moments of AdamW, in float32.
ADAM_BYTES = 2 * FLOAT
# CUDA's context with the libraries' kernels and workspaces.
CONTEXT_BYTES = 1 << 30
# Chunks of logits of the policy loss: see Note [Chunk size] in zoomzero_kernels/policy/head.py.
CPU_CHUNKS, CUDA_CHUNK_BYTES, CUDA_CHUNK_ROWS = 12, 1 << 30, 2048
# Logits, log-probabilities and waiting times of the next tokens while responses are written.
SAMPLED_COPIES = 4


@dataclass(frozen=True)
class Launch:
    """Where a run is to happen."""

    num_processes: int = 1
    """Cards, one process each."""
    device: str = "cuda"
    """Their kind: "cuda" or "cpu"."""
    card_bytes: int = 80 * GIB
    """Memory of a card."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one card, by what they are for."""

    weights: int
    """The model, sharded or whole, and the whole copy that rollouts run on where it is sharded."""
    optimizer: int
    """States of the trained weights."""
    gradients: int
    """Of the trained weights, DDP's buckets among them."""
    reference: int
    """The frozen start model; 0 where it is the model without adapters."""
    rollouts: int
    """Keys, values and logits while responses are written, or vLLM's share of the card."""
    scoring: int
    """A forward of the vision tower, the zoom pass or the reference."""
    activations: int
    """What the loss's forward keeps, with one layer at work."""
    head: int
    """Logits of the policy loss and the head's gradient."""
    embedding: int
    """A gradient of the embeddings before it is added to the others."""
    other: int
    """Cached features, CUDA's context."""
    offloads_reference: bool = False
    """The reference is on the card only while it works."""
    accumulates: bool = False
    """Gradients of earlier micro-batches live during a forward."""
    samples_beside: bool = False
    """An inference engine keeps its share during the other phases too."""

    def phases(self) -> dict[str, int]:
        """Bytes that live at once in each phase of a step."""
        always = self.weights + self.optimizer + self.other + self.rollouts * self.samples_beside
        resting = always + self.reference * (not self.offloads_reference)
        return {
            "rollouts": resting + self.rollouts * (not self.samples_beside),
            "scoring": always + self.reference + self.scoring,
            "loss": resting + self.gradients * self.accumulates + self.activations + self.head,
            "gradients": resting + self.gradients + self.embedding,
        }

    @property
    def total(self) -> int:
        """Bytes of the phase that needs most."""
        return max(self.phases().values())

    def said(self, launch: Launch) -> str:
        """The estimate as a table, and whether it fits."""
        phases = self.phases()
        parts = {name: value for name, value in dataclasses.asdict(self).items() if type(value) is int and value}
        lines = [f"memory of each of {launch.num_processes} processes, estimated, not measured on a GPU:"]
        lines += [f"  {name:12}{value / GIB:8.2f} GiB" for name, value in parts.items()]
        lines += ["of which at once, by phase of a step:"]
        lines += [f"  {name:12}{value / GIB:8.2f} GiB" for name, value in phases.items()]
        fits = "fits" if self.total <= launch.card_bytes else "does not fit"
        return "\n".join([*lines, f"{fits} {launch.card_bytes / GIB:.4g} GiB"])


def launch_of(card: str | None, num_processes: int) -> Launch:
    """Cards of a size as it is written, such as 24GiB; None takes this machine's own.

    Raises:
        ValueError: not a size, or no process.
    """
    if num_processes < 1:
        raise ValueError(f"train: processes must be at least 1, got {num_processes}; raise it")
    if card is not None:
        return Launch(num_processes, card_bytes=parsed_bytes(card))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Of a GPU all, since nothing else should run there.
    own = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else free_bytes(device) // num_processes
    return Launch(num_processes, device, own)


def memory_of_run(
    model: str | None, settings: ZoomZeroConfig, launch: Launch, *, peft_config: Any = None
) -> TrainingMemory:
    """The estimate for a checkpoint, folder or hub name, of which config and budgets alone are read.

    Raises:
        ValueError, OSError: there is no checkpoint of a supported family.
    """
    path = BUILT_IN if model is None else model
    file = checkpoint_file(path, SETTINGS_FILE)
    budgets = ZoomSettings() if file is None else ZoomSettings.load(file.parent)
    config = AutoConfig.from_pretrained(path)
    return training_memory(
        config, settings, launch, visual_tokens=budgets.coarse.budget_tokens, peft_config=peft_config
    )


def training_memory(
    config: PretrainedConfig,
    settings: ZoomZeroConfig,
    launch: Launch,
    *,
    visual_tokens: int,
    text_tokens: int = TEXT_TOKENS,
    peft_config: Any = None,
) -> TrainingMemory:
    """Estimate the memory of a run on each of its cards; AdamW's states are counted in float32.

    Args:
        config: of the model, whose weights are not read.
        settings: of the run.
        launch: number and kind of the cards.
        visual_tokens, text_tokens: of a prompt; the first are the coarse pass's budget.
        peft_config: a LoraConfig, None where all weights are trained.
    """
    text: Any = config.get_text_config()
    sizes = _Sizes.of(config, peft_config, freeze_vision=settings.freeze_vision)
    half, sharded, trains_all = bool(settings.bf16), bool(settings.fsdp_plugin_args), peft_config is None
    # Frozen weights under adapters are bfloat16 where the computation is: see `weights_dtype`.
    wide = weights_dtype(settings, peft_config)
    computing = torch.bfloat16 if half else torch.float32
    shards = launch.num_processes if sharded else 1

    weights = (sizes.frozen * wide.itemsize + sizes.trained * FLOAT) // shards
    if sharded:
        # See Note [Whole weights for rollouts] in sharding.py; two layers, and what lies outside them, are gathered.
        weights += (sizes.all + sizes.outside + 2 * sizes.layer) * computing.itemsize
    gradients = sizes.trained * FLOAT // shards
    if not sharded and launch.num_processes > 1:
        gradients *= 2  # the buckets that DDP sends
    reference = 0
    if trains_all and settings.needs_reference:
        reference = sizes.copied * (computing.itemsize if sharded else FLOAT)

    group, prompt = settings.num_generations, visual_tokens + text_tokens
    num_prompts = settings.per_device_train_batch_size // group * settings.steps_per_generation
    num_groups = settings.per_device_train_batch_size // group
    lengths = full_groups(prompt, settings.max_completion_length, group, num_groups)
    activations = _activations(config, settings, lengths, peft_config)
    if not settings.freeze_vision:
        activations += num_groups * visual_tokens * _tower_bytes(config, settings, computing)
    # Autocast keeps a cast of every trained weight while it is on; without checkpointing the layers keep them anyway.
    casts = sizes.layer * text.num_hidden_layers * HALF if half and trains_all and not sharded else 0
    layer = text_layer_values(config) * computing.itemsize
    prefill = max(prompt, min(settings.forward_tokens, num_prompts * prompt))
    written = prompt + group * settings.max_completion_length
    cached = max(written, min(num_prompts * written, CACHED_PER_FORWARD * settings.forward_tokens))
    rollouts = cached * key_value_bytes(config, wide) + prefill * layer + casts
    rollouts += SAMPLED_COPIES * -(-cached // written) * group * text.vocab_size * FLOAT
    if settings.use_vllm:
        rollouts = int(settings.vllm_gpu_memory_utilization * launch.card_bytes)
    return TrainingMemory(
        weights=weights,
        optimizer=sizes.trained * ADAM_BYTES // shards,
        gradients=gradients,
        reference=reference,
        rollouts=rollouts,
        scoring=max(prefill * layer, _encoding(config, prefill, wide)),
        activations=activations + casts * bool(settings.gradient_checkpointing),
        head=_head(text, settings, launch.device, computing, is_trained=trains_all),
        embedding=trains_all * text.vocab_size * text.hidden_size * FLOAT,
        other=settings.feature_cache_bytes + (launch.device == "cuda") * CONTEXT_BYTES,
        offloads_reference=settings.offload_reference,
        accumulates=settings.gradient_accumulation_steps > 1,
        samples_beside=settings.use_vllm and not settings.vllm_enable_sleep_mode,
    )


@dataclass(frozen=True)
class _Sizes:
    """Numbers of parameters."""

    all: int
    trained: int
    copied: int
    """In a copy for the reference: all, without a vision tower that both share."""
    layer: int
    """In one layer of the language model."""
    outside: int
    """Outside the layers of both stacks."""

    @property
    def frozen(self) -> int:
        return self.all - self.trained

    @staticmethod
    def of(config: PretrainedConfig, peft_config: Any, *, freeze_vision: bool) -> _Sizes:
        model = meta_model(config, peft_config, freeze_vision=freeze_vision)
        layers = model.model.language_model.layers
        counts = {name: (parameter.numel(), parameter.requires_grad) for name, parameter in model.named_parameters()}
        vision = sum(count for name, (count, _) in counts.items() if name.startswith("model.visual."))
        total = sum(count for count, _ in counts.values())
        return _Sizes(
            all=total,
            trained=sum(count for count, is_trained in counts.values() if is_trained),
            copied=total - vision * freeze_vision,
            layer=sum(parameter.numel() for parameter in layers[0].parameters()),
            outside=total - vision - sum(parameter.numel() for parameter in layers.parameters()),
        )


def _activations(config: PretrainedConfig, settings: ZoomZeroConfig, lengths: PackedLengths, peft_config: Any) -> int:
    """Of a micro-batch: what the layers keep, and the gradients inside the one that is at work."""
    text: Any = config.get_text_config()
    options: dict[str, Any] = {"autocast": bool(settings.bf16), "peft_config": peft_config}
    options["dtype"] = weights_dtype(settings, peft_config)
    kept = kept_activations(config, lengths, **options)
    num_tokens = sum(lengths.prefix_lengths) + sum(map(sum, lengths.branch_lengths))
    working = num_tokens * text_layer_values(config) * (HALF if settings.bf16 else FLOAT)
    if not settings.gradient_checkpointing:
        return working + kept.total(text.num_hidden_layers)
    inputs = kept_activations(config, lengths, **options, checkpointing=True)
    return working + inputs.total(text.num_hidden_layers) + kept.per_layer


def _tower_bytes(config: PretrainedConfig, settings: ZoomZeroConfig, dtype: torch.dtype) -> int:
    """What a trained vision tower keeps per visual token, about; with checkpointing that of one layer."""
    values, pixels = vision_values(config)
    vision: Any = config.vision_config
    return (1 if settings.gradient_checkpointing else vision.depth) * values * dtype.itemsize + pixels * FLOAT


def _encoding(config: PretrainedConfig, num_tokens: int, dtype: torch.dtype) -> int:
    """A forward of the vision tower."""
    values, pixels = vision_values(config)
    vision: Any = config.vision_config
    merged = vision.spatial_merge_size**2
    return min(num_tokens, -(-PATCHES_PER_RUN // merged)) * (values * dtype.itemsize + pixels * FLOAT)


def _head(text: Any, settings: ZoomZeroConfig, device: str, dtype: torch.dtype, *, is_trained: bool) -> int:
    """A chunk of logits, the states before the head with their gradients, and the head's gradient in float32."""
    rows, row_bytes = settings.per_device_train_batch_size * settings.max_completion_length, dtype.itemsize
    chunk = -(-rows // CPU_CHUNKS) * text.vocab_size * row_bytes
    if device == "cuda":
        chunk = min(
            rows * text.vocab_size * row_bytes, max(CUDA_CHUNK_BYTES, CUDA_CHUNK_ROWS * text.vocab_size * row_bytes)
        )
    states = 3 * rows * text.hidden_size * row_bytes
    return chunk + states + is_trained * text.vocab_size * text.hidden_size * FLOAT


def parsed_bytes(text: str) -> int:
    """24GiB, 80GB or 512MiB as bytes.

    Raises:
        ValueError: it has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"memory: a size must be a number and a unit, got {text!r:.80}; write e.g. 24GiB")
    unit = (found[2] or "").upper()
    factor = 1024 if unit.endswith("I") else 1000
    return int(float(found[1]) * factor ** ("KMGT".find(unit[:1] or " ") + 1))
