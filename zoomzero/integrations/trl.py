"""TRL: a GRPOTrainer whose loss is the fused one, by one mixin.

    class Trainer(FusedGRPOLossMixin, GRPOTrainer): ...

The mixin overrides the private hook ``_compute_loss`` of TRL 1.16. Advantages of shape (B,) and (B, T) both work; a
subclass that writes per-token advantages into ``inputs["advantages"]`` gets token-selective credit. With ``beta`` set,
GRPOConfig needs ``use_bias_correction_kl=False``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoomzero_kernels import GRPOLossOutput, grpo_loss
from zoomzero_kernels.grpo_options import LOSS_TYPES

# What TRL feeds to the model beside ids and mask, for text and for images with one tensor a batch.
_MODEL_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "token_type_ids")


class FusedGRPOLossMixin:
    """Replaces ``GRPOTrainer._compute_loss`` by one pass over the logits; put it before GRPOTrainer in the bases.

    The logits of the completion are computed by the model's own forward, so wrappers (PEFT, DDP) keep working, and
    their memory is reused for their gradient. Options of GRPOConfig that the fused loss does not have raise ValueError.
    """

    if TYPE_CHECKING:
        accelerator: Any
        args: Any
        model: torch.nn.Module
        loss_type: str
        beta: float
        temperature: float
        epsilon_low: float
        epsilon_high: float
        importance_sampling_level: str
        max_completion_length: int
        current_gradient_accumulation_steps: int
        _metrics: dict[str, defaultdict[str, list[float]]]

    def _check_fused_options(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"FusedGRPOLossMixin: unsupported loss_type, got {self.loss_type!r}; use one of {', '.join(LOSS_TYPES)}"
            )
        unsupported = {
            "delta": self.args.delta is not None,
            "use_bias_correction_kl": self.beta != 0.0 and self.args.use_bias_correction_kl,
            "off_policy_mask_threshold": self.args.off_policy_mask_threshold is not None,
            "top_entropy_quantile": self.args.top_entropy_quantile < 1.0,
            "entropy_coef": getattr(self, "_entropy_bonus_enabled", False),
            "router_aux_loss_coef": getattr(self, "aux_loss_enabled", False),
            "vllm_importance_sampling_correction": getattr(self, "use_vllm", False)
            and getattr(self, "vllm_importance_sampling_correction", False),
        }
        chosen = [name for name, is_set in unsupported.items() if is_set]
        if chosen:
            raise ValueError(
                f"FusedGRPOLossMixin: the fused loss has no {', '.join(chosen)}, got it set in GRPOConfig; "
                "turn the option off or train without the mixin"
            )

    def _completion_logits(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Logits [B, T, V] that predict the completion tokens."""
        dropped = ("pixel_values_videos", "num_tiles", "spatial_shapes")
        unsupported = [key for key in dropped if inputs.get(key) is not None]
        if unsupported:
            raise ValueError(
                f"FusedGRPOLossMixin: inputs {', '.join(unsupported)} are not passed on, got a batch with them; "
                "override _completion_logits"
            )
        width = inputs["completion_ids"].shape[1]
        extra = {key: inputs[key] for key in _MODEL_INPUTS if inputs.get(key) is not None}
        with self.accelerator.autocast():
            output = model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                logits_to_keep=width + 1,
                use_cache=False,
                **extra,
            )
        return output.logits[:, -width - 1 : -1]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Policy loss of a micro-batch, scaled for gradient accumulation as TRL scales each loss type."""
        self._check_fused_options()
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        training = self.model.training
        accumulation = self.current_gradient_accumulation_steps if training else 1
        num_items = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if training:
            num_items = num_items * accumulation / self.args.steps_per_generation
        output = grpo_loss(
            self._completion_logits(model, inputs),
            inputs["completion_ids"],
            inputs["advantages"],
            mask.bool(),
            old_logps=inputs.get("old_per_token_logps"),
            ref_logps=inputs["ref_per_token_logps"] if self.beta != 0.0 else None,
            temperature=self.temperature,
            beta=self.beta,
            clip_low=self.epsilon_low,
            clip_high=self.epsilon_high,
            kl_clamp=None,
            loss_type=self.loss_type,
            max_completion_length=self.max_completion_length,
            num_items=num_items,
            importance_sampling_level=self.importance_sampling_level,
            inplace=True,
        )
        self._log_fused_metrics(output, mask)
        return output.loss if self.loss_type == "dapo" else output.loss / accumulation

    def _log_fused_metrics(self, output: GRPOLossOutput, mask: Tensor) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        valid = mask.ne(0).sum()
        values = {"entropy": output.entropy.sum() / valid.clamp(min=1), "clip_ratio/region_mean": output.clip_fraction}
        if self.beta != 0.0:
            values["kl"] = output.kl
        # Weighted by the valid tokens of each process.
        sums = torch.stack([*(value.float() * valid for value in values.values()), valid.float()])
        totals = self.accelerator.reduce(sums, reduction="sum")
        for index, name in enumerate(values):
            metrics[name].append((totals[index] / totals[-1].clamp(min=1)).item())
