"""Log-probabilities and gradients of groups with a common prefix, computed once: for any trainer.

`shared_prefix(model)` changes nothing in the model's code. A hook in front of the model without its head packs the rows
of a forward call whose prefix is common, and a hook behind it hands the hidden states back row by row, so that the
head, the loss and whatever wraps the model (DDP, PEFT, TRL's fused head) see what they always see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero.models.head import HeadProbe
from zoomzero.models.packed_attention import language_model_of, packed_arguments, use_packed_attention
from zoomzero.models.packed_rows import (
    Layout,
    Row,
    find_groups,
    lay_out,
    packed_positions,
    packed_tokens,
    packed_visuals,
)
from zoomzero.models.packed_visuals import SECONDS, TYPES, VISUAL_INPUTS, rope_inputs, visuals_of_rows
from zoomzero_kernels import linear_selective_logps

FAMILIES = ("llama", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Arguments that the hook packs or may drop; a call with any other is left alone.
_PACKED = {"input_ids", "attention_mask", "position_ids", TYPES, SECONDS, *sum(VISUAL_INPUTS.values(), ())}
_MORE = ("output_hidden_states", "output_attentions", "output_router_logits")
_HARMLESS = {"use_cache", "return_dict", "num_items_in_batch"}

Prompt = Tensor | Sequence[int] | Mapping[str, Any]


class _PackedCall(NamedTuple):
    """A forward call on its way through the model.

    layout: of its rows; windows: the real tokens of each row, (first, behind last); width: tokens of a row, padded.
    """

    layout: Layout
    windows: list[tuple[int, int]]
    width: int


class SharedPrefix:
    """What `shared_prefix` gives: packed log-probabilities of prompts and their completions."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.core = _core_of(model)
        """The transformers model inside whatever wraps it."""
        self._call: _PackedCall | None = None
        self._kept = slice(None)
        self.tokens_computed = 0
        """Tokens that went through the model in packed rows since the context began."""
        self.tokens_given = 0
        """Tokens of the rows that were packed, padding left out: divided by tokens_computed, the gain."""

    def logps(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Tensor | Sequence[int]]],
        temperature: float = 1.0,
    ) -> list[list[Tensor]]:
        """Log-probabilities of completions, each prompt computed once; gradients flow to all of the model.

        Args:
            prompts: P prompts: token ids, or what the processor of a vision-language model gives for one prompt
                (input_ids and mm_token_type_ids [1, L], pixel_values(_videos), image_ or video_grid_thw, ...).
            completions: for each prompt the token ids of its completions, any number of them and of any lengths.
            temperature: the logits are divided by it.

        Returns:
            For each prompt and completion float32 [T] (float64 for a float64 model).

        Raises:
            ValueError: no prompt, a prompt without tokens, or not one list of completions per prompt.
        """
        rows, spans = self._rows_of(prompts, completions)
        layout = lay_out(rows, find_groups(rows))

        def at_head(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
            flat = hidden.flatten(0, 1)
            places = [layout.places[row][start - 1 : -1] for row, start in enumerate(spans)]
            index = torch.cat(places).to(hidden.device)
            targets = torch.cat([torch.tensor(row.ids[start:]).long() for row, start in zip(rows, spans, strict=True)])
            with torch.autocast(hidden.device.type, enabled=False):
                states = flat[index].to(head.weight.dtype)[None]
                logps = linear_selective_logps(
                    states, head.weight, targets.to(hidden.device)[None], bias=head.bias, temperature=temperature
                )
            return cast(Tensor, logps)

        head = cast(torch.nn.Linear, self.core.get_output_embeddings())
        with HeadProbe(head, at_head, leaves=lambda logps: logps):
            output = self._model(**self._packed(rows, layout, None))
        sizes = [len(row.ids) - start for row, start in zip(rows, spans, strict=True)]
        parts = iter(output.logits[0].split(sizes))
        return [[next(parts) for _ in group] for group in completions]

    def keep_states(self, places: slice) -> None:
        """Hand only these positions of each row to the head in the next forward call.

        For heads that are asked for the log-probabilities of some positions, and would else compute others too.
        """
        self._kept = places

    def _rows_of(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Tensor | Sequence[int]]]
    ) -> tuple[list[Row], list[int]]:
        """One row per completion, and where in it the completion begins."""
        if len(prompts) == 0 or len(prompts) != len(completions) or not any(len(group) for group in completions):
            raise ValueError(
                "shared_prefix: logps needs prompts and one list of completions per prompt, got "
                f"{len(prompts)} prompts and {[len(group) for group in completions]} completions; "
                "pass the completions as a list of lists"
            )
        rows: list[Row] = []
        spans: list[int] = []
        for prompt, group in zip(prompts, completions, strict=True):
            inputs = prompt if isinstance(prompt, Mapping) else {"input_ids": prompt}
            ids = torch.as_tensor(inputs["input_ids"]).flatten().tolist()
            if not ids:
                raise ValueError("shared_prefix: a prompt must have at least one token, got none; leave it out")
            visuals = visuals_of_rows(self.core.config, [ids], inputs)[0]
            for completion in group:
                rows.append(Row(ids + torch.as_tensor(completion, dtype=torch.long).flatten().tolist(), visuals))
                spans.append(len(ids))
        return rows, spans

    def _packed(self, rows: list[Row], layout: Layout, positions: list[Tensor] | None) -> dict[str, Any]:
        """The model's arguments for the packed rows; positions as the model itself gives them, unless given."""
        device = self.core.device
        ids = [torch.tensor(row.ids, dtype=torch.long, device=device) for row in rows]
        arguments: dict[str, Any] = {"input_ids": packed_tokens(layout, ids)}
        if positions is None:
            positions = self._own_positions(rows)
        packed = packed_positions(layout, [each.to(device) for each in positions])
        arguments["position_ids"] = packed if len(packed) > 1 else packed[0]
        visuals = packed_visuals(layout, rows)
        for kind, (pixels, grid) in VISUAL_INPUTS.items():
            chosen = [visual for visual in visuals if visual.kind == kind]
            if chosen:
                arguments[pixels] = torch.cat([visual.pixels.to(device) for visual in chosen])
                arguments[grid] = torch.cat([visual.grid.to(device) for visual in chosen])
        self.tokens_computed += layout.num_tokens
        self.tokens_given += sum(len(row.ids) for row in rows)
        return {**arguments, **packed_arguments(layout.lengths, device)}

    def _own_positions(self, rows: list[Row]) -> list[Tensor]:
        """Per row the positions int64 [A, n] that the model gives it when it is alone."""
        base: Any = self.core.base_model
        positions: list[Tensor] = []
        for row in rows:
            if not hasattr(base, "get_rope_index"):
                positions.append(torch.arange(len(row.ids))[None])
                continue
            positions.append(base.get_rope_index(**rope_inputs(self.core.config, row.ids, row.visuals))[0][:, 0])
        return positions

    def _more_is_asked(self) -> bool:
        """Whether the configuration asks for more than the last hidden states."""
        configs = (self.core.config, language_model_of(self.core).config)
        return any(getattr(config, name, False) for config in configs for name in _MORE)

    def before(self, base: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Hook in front of the model without its head: packs the call, if it can be and if that saves tokens."""
        self._call = None
        if len(arguments) == 1:
            options = {"input_ids": arguments[0], **options}
        if len(arguments) > 1 or self._more_is_asked() or not _can_be_packed(options):
            return None
        ids = options["input_ids"]
        windows = _windows(ids, options.get("attention_mask"))
        if windows is None:
            return None
        tokens = ids.tolist()
        ids_of_rows = [row[start:end] for row, (start, end) in zip(tokens, windows, strict=True)]
        visuals = visuals_of_rows(self.core.config, ids_of_rows, options)
        if any(visuals) and options.get(TYPES) is None:
            return None  # without them the model counts visual tokens as text, or refuses
        rows = [Row(row, own) for row, own in zip(ids_of_rows, visuals, strict=True)]
        layout = lay_out(rows, find_groups(rows))
        if layout.num_tokens >= ids.numel():
            return None
        self._call = _PackedCall(layout, windows, ids.shape[1])
        given = options.get("position_ids")
        positions = None
        if given is not None:
            given = given[None] if given.dim() == 2 else given[-3:]  # four axes: the first is the text's own
            given = given.expand(-1, len(rows), -1)
            positions = [given[:, row, start:end] for row, (start, end) in enumerate(windows)]
        kept = {name: value for name, value in options.items() if name in _HARMLESS}
        return (), {**kept, **self._packed(rows, layout, positions)}

    def after(self, base: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        """Hook behind it: hidden states [1, N, D] of the packed row back to rows [B, width, D], or what is kept."""
        (call, self._call), (kept, self._kept) = (self._call, None), (self._kept, slice(None))
        hidden = output[0]
        if call is not None:
            index = torch.zeros(len(call.windows), call.width, dtype=torch.long)
            for row, (start, end) in enumerate(call.windows):
                index[row, start:end] = call.layout.places[row]
            rows = hidden.flatten(0, 1)[index[:, kept].to(hidden.device)]
        elif kept != slice(None):
            rows = hidden[:, kept]
        else:
            return None
        if isinstance(output, tuple):
            return (rows, *output[1:])
        output.last_hidden_state = rows
        return output


def _core_of(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside whatever wraps it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            if module.config.model_type in FAMILIES and module.get_output_embeddings() is not None:
                return module
            raise ValueError(
                f"shared_prefix: the model must be a decoder with a head, of a family among {', '.join(FAMILIES)}, got "
                f"{type(module).__name__} of {module.config.model_type}; run it without shared prefixes"
            )
    raise TypeError(
        f"shared_prefix: the model must hold a transformers model, got {type(model).__name__}; pass the model itself "
        "or what wraps it"
    )


def _can_be_packed(options: Mapping[str, Any]) -> bool:
    """Whether a call is a pass over whole rows of tokens that asks for nothing but the last hidden states."""
    asked = {name for name, value in options.items() if value is not None and value is not False}
    ids = options.get("input_ids")
    return (
        ids is not None
        and ids.dim() == 2
        and ids.shape[0] > 1
        and not options.get("use_cache")
        and asked <= _PACKED | _HARMLESS
    )


def _windows(ids: Tensor, mask: Tensor | None) -> list[tuple[int, int]] | None:
    """(first, behind last) real token of each row; None for a mask of another kind, or with a gap or an empty row."""
    if mask is None:
        return [(0, ids.shape[1])] * ids.shape[0]
    if mask.dim() != 2 or mask.shape != ids.shape:
        return None
    real = mask.bool()
    counts, starts = real.sum(-1).tolist(), real.int().argmax(-1).tolist()
    ends = (ids.shape[1] - real.flip(-1).int().argmax(-1)).tolist()
    if any(count == 0 or count != end - start for count, start, end in zip(counts, starts, ends, strict=True)):
        return None
    return list(zip(starts, ends, strict=True))


@contextlib.contextmanager
def shared_prefix(model: torch.nn.Module) -> Iterator[SharedPrefix]:
    """Inside the context the model computes common prefixes once: `logps`, and its own forward.

    A forward call over rows of tokens (left-padded prompts with right-padded completions, in any order, of one group or
    of many) is packed where rows share a prefix; its results are those of the call without packing. Calls with a cache
    (generation), with embeddings, or that ask for hidden states or attentions of all layers are left alone, and a
    packed call returns no cache. Packing rests on the token ids, and on the pixels where there are any: rows whose
    prompts look alike in tokens but show different pixels are not packed together.

    Args:
        model: a decoder model of transformers with its head (Llama, Qwen2, Qwen2.5, Qwen3, Qwen2-VL, Qwen2.5-VL,
            Qwen3-VL), or what wraps one (PEFT, DistributedDataParallel).

    Raises:
        TypeError: no transformers model is in it.
        ValueError: it is of another family.
    """
    packed = SharedPrefix(model)
    core = _core_of(model)
    config = language_model_of(core).config
    former = config._attn_implementation
    use_packed_attention(core)
    base = core.base_model
    handles = [
        base.register_forward_pre_hook(packed.before, with_kwargs=True),
        base.register_forward_hook(packed.after, with_kwargs=True),
    ]
    try:
        yield packed
    finally:
        for handle in handles:
            handle.remove()
        # A layer that gradient checkpointing runs again, in a backward pass after the context, must find its attention.
        if not any(getattr(module, "gradient_checkpointing", False) for module in core.modules()):
            config._attn_implementation = former
