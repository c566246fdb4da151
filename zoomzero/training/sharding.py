"""Weights sharded over processes by FSDP2: what accelerate is told, and whole weights where they are needed.

Note [Whole weights for rollouts]
FSDP2 gathers a layer's weights in every forward, in which all processes must take part. Rollouts and zoom prompts take
each process another number of forwards, so they run on a copy of the model that every process holds whole and that
takes the trained weights once per generation batch. So only the training forward is sharded, with its gradients and
the optimizer's state: most of the memory. With LoRA only the adapters travel.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from zoomzero.models.adapters import without_wrapper
from zoomzero.training.weights import CHECKPOINTED, whole

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def settle_sharding(accelerator: Accelerator, plugin_args: dict[str, Any] | None) -> None:
    """Have accelerate shard as the settings or the launch ask; on a CPU it would leave the plan out without a word.

    plugin_args: of accelerate's FSDP plugin, None where sharding was not asked for by the settings.

    Raises:
        ValueError: FSDP was asked for and cannot be had.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    state = accelerator.state
    asked = plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes", "on")
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Without arguments accelerate's plugin reads what its launcher wrote into the environment.
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_args or {}))
        # Both, as accelerate itself sets them: a state that is made anew takes what the other holds.
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if accelerator.distributed_type != DistributedType.FSDP:
        if asked:
            raise ValueError(
                "ZoomZeroTrainer: FSDP shares weights among several processes, got "
                f"{accelerator.num_processes} of accelerate's kind {accelerator.distributed_type.value}, where "
                "it would be left out without a word; launch several, or leave FSDP out"
            )
        return
    plugin = state.fsdp_plugin
    if plugin is None or plugin.fsdp_version != 2:
        raise ValueError(
            f"ZoomZeroTrainer: weights are sharded by FSDP2, got version {getattr(plugin, 'fsdp_version', None)}; set "
            "fsdp_version to 2 in the configuration of the launch"
        )
    if accelerator.mixed_precision == "bf16":
        # accelerate's own would also add gradients up, and hand the loss out, in bfloat16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class RolloutPolicy:
    """The trained model as an ordinary one, for rollouts and scores. See Note [Whole weights for rollouts].

    Args:
        trained: the model before it is sharded, adapters and their wrapper included.
        sharded: whether it will be.
        dtype: of a copy.
    """

    def __init__(self, trained: torch.nn.Module, *, sharded: bool, dtype: torch.dtype | None = None) -> None:
        self._copy: torch.nn.Module | None = None
        core = without_wrapper(trained)
        if sharded:
            core = copy.deepcopy(core).requires_grad_(False).eval().to(dtype=dtype)
            # TRL's own around it, which would call the model that it was made for.
            vars(core).pop("forward", None)
        self.model: PreTrainedModel = core
        self._is_copy = sharded

    @torch.no_grad()
    def refresh(self, core: torch.nn.Module) -> None:
        """Take the trained weights; all processes call it together."""
        if not self._is_copy:
            return
        own = dict(self.model.named_parameters())
        for name, parameter in core.named_parameters():
            if parameter.requires_grad:
                own[name.replace(CHECKPOINTED, "")].copy_(whole(parameter))
