"""TRL: a GRPOTrainer whose loss is the fused one, by one mixin.

    class Trainer(FusedGRPOLossMixin, GRPOTrainer): ...

The mixin overrides the private hook ``_compute_loss`` of TRL 1.14 to 1.16. Advantages of shape (B,) and (B, T) both
work; a subclass that writes per-token advantages into ``inputs["advantages"]`` gets token-selective credit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from zoomzero.integrations.trl_hooks import refuse_compilation, require_hooks
from zoomzero.models.head import HeadProbe
from zoomzero_kernels import GRPOLossOutput, grpo_loss, linear_grpo_loss, linear_selective_logps, selective_logps
from zoomzero_kernels.policy.objectives import ITEM_LOSS_TYPES, LOSS_TYPES

_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_VESPO_OPTIONS = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
# What TRL feeds to the model beside ids and mask, for text and for images with one tensor a batch.
_MODEL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "image_position_ids",
    "pixel_attention_mask",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)


class FusedGRPOLossMixin:
    """Replaces ``GRPOTrainer._compute_loss``; put it before GRPOTrainer in the bases.

    With a plain linear head the loss is ``linear_grpo_loss`` on the hidden states in front of it, and the logits are
    never held; see Note [Inside the head] in models/head.py. With any other head, and for models that change their
    logits after it, the model's own logits go through ``grpo_loss``, which reuses their memory for their gradient.
    Options of GRPOConfig that the fused loss does not have raise ValueError.
    """

    # Whether the head's output is what the model returns; None until the first batch has shown it.
    _logits_are_the_heads: bool | None = None

    if TYPE_CHECKING:
        accelerator: Any
        args: Any
        model: Any
        loss_type: str
        beta: float
        temperature: float
        epsilon_low: float
        epsilon_high: float
        importance_sampling_level: str
        max_completion_length: int
        current_gradient_accumulation_steps: int
        entropy_coef: float
        use_adaptive_entropy: bool
        get_high_entropy_mask: Any
        _last_world_entropy: float
        _entropy_window_stats: Tensor | None
        _metrics: dict[str, defaultdict[str, list[float]]]

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which the mixin would silently do nothing: behind the trainer, or with another TRL."""
        super().__init_subclass__(**options)
        require_hooks(FusedGRPOLossMixin, cls, {"_compute_loss": ("model", "inputs")})

    def _check_fused_options(self) -> None:
        refuse_compilation(FusedGRPOLossMixin, self.args)
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"FusedGRPOLossMixin: unsupported loss_type, got {self.loss_type!r}; use one of {', '.join(LOSS_TYPES)}"
            )
        if getattr(self, "aux_loss_enabled", False):
            raise ValueError(
                "FusedGRPOLossMixin: the fused loss has no router_aux_loss_coef, since the router's logits do not pass "
                "through the head, got it set in GRPOConfig; turn the option off or train without the mixin"
            )

    def _accumulation(self) -> float:
        return self.current_gradient_accumulation_steps if self.model.training else 1.0

    def _entropy_coefficient(self) -> float:
        """What TRL applies in this accumulation window; its adaptive control lags one optimizer step behind."""
        if not getattr(self, "_entropy_bonus_enabled", False):
            return 0.0
        if self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target:
            return 0.0
        return self.entropy_coef

    def _entropy_mask(self, entropy: Callable[[], Tensor], mask: Tensor) -> Tensor | None:
        """The tokens of the highest entropies over all processes, where GRPOConfig asks for them."""
        quantile = self.args.top_entropy_quantile
        if quantile >= 1.0:
            return None
        with torch.no_grad():
            return cast(Tensor, self.get_high_entropy_mask(entropy(), mask, 1 - quantile))

    def _corrects_vllm(self) -> bool:
        return getattr(self, "use_vllm", False) and getattr(self, "vllm_importance_sampling_correction", False)

    def _completion_logits(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Logits of the completion and of the position before it, [B, T + 1, V], from the model's own forward."""
        dropped = ("pixel_values_videos", "num_tiles", "spatial_shapes")
        unsupported = [key for key in dropped if inputs.get(key) is not None]
        if unsupported:
            raise ValueError(
                f"FusedGRPOLossMixin: inputs {', '.join(unsupported)} are not passed on, got a batch with them; "
                "override _completion_logits"
            )
        extra = {key: inputs[key] for key in _MODEL_INPUTS if inputs.get(key) is not None}
        with self.accelerator.autocast():
            output = model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                logits_to_keep=inputs["completion_ids"].shape[1] + 1,
                use_cache=False,
                **extra,
            )
        return output.logits

    def _loss_options(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the fused loss, with the normaliser of "dapo" as TRL computes it."""
        num_items = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if self.model.training:
            num_items = num_items * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        divides_by_items, accumulation = self.loss_type in ITEM_LOSS_TYPES, self._accumulation()
        bonus = self._entropy_coefficient()
        return {
            "old_logps": inputs.get("old_per_token_logps"),
            "ref_logps": inputs["ref_per_token_logps"] if self.beta != 0.0 else None,
            "temperature": self.temperature,
            "beta": self.beta,
            "clip_low": self.epsilon_low,
            "clip_high": self.epsilon_high,
            "kl_clamp": None,
            "unbiased_kl": self.args.use_bias_correction_kl,
            "delta": self.args.delta,
            "sapo_temperature_pos": self.args.sapo_temperature_pos,
            "sapo_temperature_neg": self.args.sapo_temperature_neg,
            "loss_type": self.loss_type,
            "max_completion_length": self.max_completion_length,
            "num_items": num_items,
            "importance_sampling_level": self.importance_sampling_level,
            # The ratios that correct for what vLLM sampled from, by token or [B, 1] by sequence.
            "importance_sampling_ratio": inputs["importance_sampling_ratio"] if self._corrects_vllm() else None,
            "off_policy_threshold": self.args.off_policy_mask_threshold,
            "sampling_logps": inputs.get("sampling_per_token_logps"),
            "entropy_coef": bonus / accumulation if divides_by_items else bonus,
            "loss_scale": 1.0 if divides_by_items else 1.0 / accumulation,
            **{name: getattr(self.args, name) for name in _VESPO_OPTIONS if hasattr(self.args, name)},
        }

    def _fused_loss(self, model: torch.nn.Module, inputs: dict[str, Any], mask: Tensor) -> GRPOLossOutput:
        tokens = (inputs["completion_ids"], inputs["advantages"], mask.bool())
        options = self._loss_options(inputs)
        width = mask.shape[1]

        def before_head(head: torch.nn.Linear, hidden: Tensor) -> GRPOLossOutput:
            device = hidden.device.type
            # The dtype in which the head itself would multiply.
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
            dtype = torch.float32 if self.args.cast_lm_head_to_fp32 else dtype
            bias = None if head.bias is None else head.bias.to(dtype)
            states = hidden[:, -width - 1 : -1].to(dtype)
            weight = head.weight.to(dtype)
            with torch.autocast(device, enabled=False):

                def entropy() -> Tensor:
                    ids, temperature = inputs["completion_ids"], self.temperature
                    return linear_selective_logps(
                        states, weight, ids, bias=bias, temperature=temperature, with_entropy=True
                    )[1]

                options["entropy_mask"] = self._entropy_mask(entropy, mask)
                return linear_grpo_loss(states, weight, *tokens, bias=bias, **options)

        head = self.model.get_output_embeddings()
        # Exactly Linear: an adapter on the head is a subclass or a wrapper whose weight is not all of it.
        if type(head) is torch.nn.Linear and self._logits_are_the_heads is not False:
            with HeadProbe(head, before_head) as probe:
                logits = self._completion_logits(model, inputs)
            if self._logits_are_the_heads is None and probe.last_logits is not None:
                self._logits_are_the_heads = torch.equal(logits.detach().float(), probe.last_logits.float())
            if self._logits_are_the_heads and probe.output is not None:
                return probe.output
        if self.args.cast_lm_head_to_fp32:
            raise ValueError(
                "FusedGRPOLossMixin: cast_lm_head_to_fp32 needs a plain linear head whose output the model returns, "
                f"got {type(head).__name__} in {type(self.model).__name__}; turn the option off"
            )
        logits = self._completion_logits(model, inputs)[:, -width - 1 : -1]

        def entropy() -> Tensor:
            ids = inputs["completion_ids"]
            return selective_logps(logits, ids, temperature=self.temperature, with_entropy=True)[1]

        options["entropy_mask"] = self._entropy_mask(entropy, mask)
        return grpo_loss(logits, *tokens, inplace=True, **options)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Policy loss of a micro-batch, scaled for gradient accumulation as TRL scales each loss type."""
        self._check_fused_options()
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        output = self._fused_loss(model, inputs, mask)
        self._log_fused_metrics(output, mask)
        if getattr(self, "_entropy_bonus_enabled", False):
            self._control_entropy(output, mask)
        return output.loss

    def _control_entropy(self, output: GRPOLossOutput, mask: Tensor) -> None:
        """TRL's metrics of the bonus, and the adaptive coefficient for the next optimizer step."""
        active = mask.bool()
        chosen = self._entropy_mask(lambda: output.entropy, mask)
        active = active if chosen is None else active & chosen
        stats = torch.stack([(output.entropy * active).sum(), active.sum().to(output.entropy.dtype)])
        metrics = self._metrics["train" if self.model.training else "eval"]
        bonus = self._entropy_coefficient() * stats[0] / stats[1].clamp(min=1)
        accumulation = self._accumulation()
        loss = output.loss.detach()
        policy = loss + bonus / accumulation if self.loss_type in ITEM_LOSS_TYPES else loss * accumulation + bonus
        metrics["policy_loss"].append(self.accelerator.gather(policy).nanmean().item())
        if not self.model.training:
            return
        if self.use_adaptive_entropy:
            window = self._entropy_window_stats
            self._entropy_window_stats = stats if window is None else window + stats
            if self.accelerator.sync_gradients:
                total = self.accelerator.reduce(self._entropy_window_stats, reduction="sum")
                entropy, step = (total[0] / total[1].clamp(min=1)).item(), self.args.entropy_coef_delta
                if entropy <= self.args.entropy_target:
                    self.entropy_coef = min(self.entropy_coef + step, self.args.entropy_coef_max)
                else:
                    self.entropy_coef = max(self.entropy_coef - step, self.args.entropy_coef_min)
                self._last_world_entropy, self._entropy_window_stats = entropy, None
        if self.accelerator.sync_gradients:
            metrics["entropy_coef"].append(self.entropy_coef)

    def _log_fused_metrics(self, output: GRPOLossOutput, mask: Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        valid = mask.ne(0).sum()
        values = {"entropy": output.entropy.sum() / valid.clamp(min=1)}
        if self.loss_type == "cispo":
            values["cispo_clip_ratio"] = output.clip_fraction
        elif self.loss_type in _CLIPPED:
            values["clip_ratio/low_mean"] = output.clip_low_fraction
            values["clip_ratio/high_mean"] = output.clip_high_fraction
            values["clip_ratio/region_mean"] = output.clip_fraction
        if self.beta != 0.0:
            values["kl"] = output.kl
        # Weighted by the valid tokens of each process.
        sums = torch.stack([*(value.float() * valid for value in values.values()), valid.float()])
        totals = self.accelerator.reduce(sums, reduction="sum")
        for index, name in enumerate(values):
            metrics[name].append((totals[index] / totals[-1].clamp(min=1)).item())
