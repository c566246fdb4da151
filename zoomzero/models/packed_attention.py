"""shared_prefix_attention as an attention of transformers' AttentionInterface.

Note [Packed rows through a model]
All groups of a batch lie in one row, without padding. A forward call that is given `shared_prefix=PackedLengths(...)`
hands it down to every attention layer, as all arguments that a model does not know, gradient checkpointing included. A
layer whose attention is registered here computes packed rows when it sees the lengths, and otherwise calls the
attention it had before: the model's other forward passes, generation too, stay as they were. The 4-D mask of
`packed_arguments` says nothing; it keeps transformers, which passes a 4-D mask on as it is, from building a dense one.
In the same way `group_step=True` makes a call a decoding step of all responses of a group.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from zoomzero_kernels import shared_prefix_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "zoomzero_shared_prefix_"
# What some models' attentions do beyond softmax(q k^T) v, by the argument through which they ask for it.
_UNKNOWN_EXTRAS = ("softcap", "s_aux", "position_bias")


class PackedLengths(NamedTuple):
    """The groups [prefix | branch 0 | branch 1 | ...] that lie one after the other in one packed row, in tokens.

    prefix_lengths: one per group; branch_lengths: one list per group.
    """

    prefix_lengths: Sequence[int]
    branch_lengths: Sequence[Sequence[int]]


def packed_arguments(lengths: PackedLengths, device: torch.device) -> dict[str, Any]:
    """The arguments of a forward call that make its rows packed ones. See Note [Packed rows through a model]."""
    return {"attention_mask": torch.ones(1, 1, 1, 1, device=device), "shared_prefix": lengths, "use_cache": False}


def language_model_of(core: PreTrainedModel) -> PreTrainedModel:
    """The stack of decoder layers inside a model for causal language modelling, with or without a vision tower."""
    base: Any = core.base_model
    language: PreTrainedModel = getattr(base, "language_model", base)
    return language


def use_packed_attention(core: PreTrainedModel) -> str:
    """Let the layers of the model's language model compute packed rows; returns the name of what they had before.

    The vision tower keeps its attention. A second call changes nothing.
    """
    config = language_model_of(core).config
    former: str = config._attn_implementation
    if former.startswith(_PREFIX):
        return former.removeprefix(_PREFIX)
    masks = AttentionMaskInterface()
    AttentionInterface.register(_PREFIX + former, _packed_or(former))
    if former in masks:
        AttentionMaskInterface.register(_PREFIX + former, masks[former])
    config._attn_implementation = _PREFIX + former
    return former


def _packed_or(former: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """An attention function: packed rows where lengths are given, `former` where they are not."""

    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        shared_prefix: PackedLengths | None = None,
        group_step: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if shared_prefix is not None:
            return packed_attention(query, key, value, shared_prefix, **options), None
        if group_step:
            return group_step_attention(query, key, value, attention_mask, **options), None
        # "eager" is no entry of the interface but a function of each model's own file.
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        original = AttentionInterface().get_interface(former, eager)
        result: tuple[Tensor, Tensor | None] = original(module, query, key, value, attention_mask, **options)
        return result

    return attention


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: PackedLengths,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> Tensor:
    """query [1, H, L, D], key and value [1, Hkv, L, D], not yet repeated -> [1, L, H, D], as transformers wants it.

    ValueError for what packed rows do not know: dropout, a window shorter than a prefix and its longest branch, soft
    caps, sinks and biases.
    """
    longest = max((prefix + max(branches, default=0) for prefix, branches in zip(*lengths, strict=True)), default=0)
    _check_plain(longest, dropout, sliding_window, options)
    out = shared_prefix_attention(
        query, key, value, *lengths, groups_per_row=[len(lengths.prefix_lengths)], scale=scaling
    )
    return out.transpose(1, 2)


def group_step_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> Tensor:
    """One new token of each of G responses per prompt: query [P, H, G, D] -> [P, G, H, D].

    key, value [P, Hkv, K, D] with room for the longest responses; mask [P, 1, H / Hkv * G, K] additive, in the dtype of
    query. The queries of the heads that share keys become rows of one product, so keys are read once and not repeated.
    ValueError as for `packed_attention`.
    """
    _check_plain(key.shape[2], dropout, sliding_window, options)
    key_heads = key.shape[1]
    folded = query.unflatten(1, (key_heads, -1)).flatten(2, 3)
    out = functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.unflatten(2, (-1, query.shape[2])).flatten(1, 2).transpose(1, 2)


def _check_plain(longest: int, dropout: float, sliding_window: int | None, options: dict[str, Any]) -> None:
    """ValueError unless a layer asks for plain softmax attention over at least `longest` tokens."""
    if dropout:
        raise ValueError(
            f"shared prefixes: attention must be without dropout, got {dropout}; set config.attention_dropout = 0.0"
        )
    extras = [name for name in _UNKNOWN_EXTRAS if options.get(name) is not None]
    if extras:
        raise ValueError(
            f"shared prefixes: attention must be plain softmax attention, got a layer with {', '.join(extras)}; "
            "run this model without shared prefixes"
        )
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(
            f"shared prefixes: prefix and branch must fit into the layer's window of {sliding_window} tokens, got "
            f"{longest}; run this model without shared prefixes"
        )
