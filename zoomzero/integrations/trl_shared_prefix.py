"""TRL: a GRPOTrainer that computes the prompt of a group once, by one mixin.

    class Trainer(SharedPrefixMixin, GRPOTrainer): ...
    class Trainer(SharedPrefixMixin, FusedGRPOLossMixin, GRPOTrainer): ...

The mixin runs TRL's own passes inside `zoomzero.shared_prefix`: the loss, the old log-probabilities and those of the
reference model. Rows stay as TRL holds them; their common prefixes are found anew in every pass.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoomzero.integrations.trl_hooks import refuse_compilation, require_hooks
from zoomzero.models.packed_rows import Row, find_groups
from zoomzero.models.packed_visuals import visuals_of_rows
from zoomzero.models.shared_prefix import SharedPrefix, shared_prefix

Batch = dict[str, Any]

_HOOKS = {
    "_compute_loss": ("model", "inputs"),
    "_get_per_token_logps_and_entropies": ("model",),
    "_prepare_inputs": ("generation_batch",),
}


class SharedPrefixMixin:
    """Packs the passes of a ``GRPOTrainer``; put it first in the bases, before the trainer and ``FusedGRPOLossMixin``.

    Losses and gradients are TRL's own, but for rounding, and for "bnpo", which divides by the tokens of a micro-batch:
    TRL shuffles rows before it cuts them into micro-batches, and the mixin brings the rows of a prompt together again,
    within one optimizer step. The passes without gradients take as many whole groups at a time as need no more tokens
    than TRL's own batches. "shared_prefix/times_fewer_tokens" in the logs is the gain.

    A call that cannot be packed (see docs/shared_prefixes.md) runs as it does without the mixin. A model of no family
    that `zoomzero.shared_prefix` knows is refused when the trainer is made.
    """

    if TYPE_CHECKING:
        accelerator: Any
        args: Any
        model: Any
        num_generations: int
        num_generations_eval: int
        _buffered_inputs: list[Batch] | None
        _metrics: dict[str, defaultdict[str, list[float]]]
        _step: int

    _packing: SharedPrefix | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which the mixin would silently do nothing: behind the trainer, or with another TRL."""
        super().__init_subclass__(**options)
        require_hooks(SharedPrefixMixin, cls, _HOOKS)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        refuse_compilation(SharedPrefixMixin, self.args)
        with shared_prefix(self.model):
            pass  # refuses a model of another family before any work is done

    @contextlib.contextmanager
    def _packed(self, model: torch.nn.Module) -> Iterator[SharedPrefix]:
        """TRL's loss calls its log-probabilities: the inner of two contexts is the outer one."""
        if self._packing is not None:
            yield self._packing
            return
        try:
            with shared_prefix(model) as packed:
                self._packing = packed
                yield packed
        finally:
            self._packing = None
        if packed.tokens_computed:
            metrics = self._metrics["train" if self.model.training else "eval"]
            gain = packed.tokens_given / packed.tokens_computed
            metrics["shared_prefix/times_fewer_tokens"].append(gain)

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        with self._packed(model):
            loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows = batch_size and self._rows_at_once(batch_size, input_ids.shape[1] - logits_to_keep, logits_to_keep)
        with self._packed(model) as packed, scored_positions_only(packed, logits_to_keep):
            result: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids, attention_mask, logits_to_keep, batch_size=rows, **options
            )
        return result

    def _rows_at_once(self, batch_size: int, prompt: int, completion: int) -> int:
        """Whole groups whose packed rows hold no more tokens than `batch_size` rows of prompt + completion tokens."""
        group = self.num_generations if self.model.training else self.num_generations_eval
        num_groups = batch_size * (prompt + completion) // (prompt + group * completion)
        return max(batch_size, num_groups * group)

    def _prepare_inputs(self, generation_batch: Batch) -> Batch:
        former = self._buffered_inputs
        inputs: Batch = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        batches = self._buffered_inputs
        if batches is None or batches is former:
            return inputs
        # So many neighbouring micro-batches are always of one optimizer step.
        step = math.gcd(self.args.gradient_accumulation_steps, len(batches))
        config = self.accelerator.unwrap_model(self.model).config
        self._buffered_inputs = [
            batch
            for start in range(0, len(batches), step)
            for batch in regrouped(config, batches[start : start + step])
        ]
        return self._buffered_inputs[self._step % len(batches)]


@contextlib.contextmanager
def scored_positions_only(packed: SharedPrefix, width: int) -> Iterator[None]:
    """Inside, TRL's fused head sees the states that predict the last ``width`` tokens of each row, and no others.

    On the CPU it would score every position of the prompts too, and then drop what it scored. Labels that are shifted
    already are its own way (for context parallelism) to take states and labels as they are.
    """

    def before(model: torch.nn.Module, arguments: tuple[Any, ...], options: Batch) -> Any:
        labels = options.get("labels")
        if not options.get("fused_lm_head") or labels is None or labels.shape[1] <= width:
            return None
        packed.keep_states(slice(-width - 1, -1))
        return arguments, {**options, "labels": None, "shift_labels": labels[:, -width:]}

    handle = packed.core.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def regrouped(config: Any, batches: Sequence[Batch]) -> list[Batch]:
    """The rows of TRL's micro-batches dealt anew, so that rows whose prompts begin alike are neighbours.

    config: the model's; batches: of equal size, each value a tensor or list with an entry per row, a scalar or None.
    """
    from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

    by_row = [split_pixel_values_by_grid(batch) for batch in batches]
    joined: dict[str, Any] = {name: _joined([batch[name] for batch in by_row]) for name in by_row[0]}
    real = joined["prompt_mask"].bool()
    prompts = [row[mask].tolist() for row, mask in zip(joined["prompt_ids"], real, strict=True)]
    visuals = visuals_of_rows(config, prompts, unsplit_pixel_values_by_grid(joined))
    groups = find_groups([Row(ids, own) for ids, own in zip(prompts, visuals, strict=True)])
    order = [row for group in groups for row in group.rows]
    dealt: list[Any] = split_tensor_dict(
        {name: _in_order(value, order) for name, value in joined.items()}, len(batches)
    )
    return [unsplit_pixel_values_by_grid(batch) for batch in dealt]


def _joined(parts: list[Any]) -> Any:
    """One value of all micro-batches; a scalar, which counts the whole generation batch, and None stay."""
    (first, *_) = parts
    if isinstance(first, Tensor):
        return first if first.dim() == 0 else torch.cat(parts)
    return None if first is None else [value for part in parts for value in part]


def _in_order(values: Any, order: list[int]) -> Any:
    if values is None or (isinstance(values, Tensor) and values.dim() == 0):
        return values
    return values[order] if isinstance(values, Tensor) else [values[row] for row in order]
