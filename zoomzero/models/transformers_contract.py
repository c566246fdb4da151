"""The parts of transformers outside its Trainer that this package stands on; see contracts.py."""

from __future__ import annotations

from transformers import AttentionInterface, core_model_loading
from transformers.cache_utils import CacheLayerMixin

from zoomzero.contracts import Contract

_TRANSFORMERS = Contract(
    "zoomzero", "transformers", "install transformers>=5.18,<5.24, the releases that it was written for"
)

# What a layer of the cache must have; a further abstract method would keep ours from being made.
CACHE_METHODS = {
    "lazy_initialization": ("key_states", "value_states"),
    "update": ("key_states", "value_states", "args", "kwargs"),
    "get_mask_sizes": ("query_length",),
    "get_seq_length": (),
    "get_max_length": (),
}


def require_transformers() -> None:
    """RuntimeError when a part of transformers that is used is gone or takes other arguments."""
    for name, expected in CACHE_METHODS.items():
        _TRANSFORMERS.method(CacheLayerMixin, name, expected)
    if more := sorted(CacheLayerMixin.__abstractmethods__ - CACHE_METHODS.keys()):
        raise _TRANSFORMERS.broken("CacheLayerMixin must demand no method that is not known here", more)
    convert = getattr(core_model_loading, "revert_weight_conversion", None)
    _TRANSFORMERS.call(convert, "core_model_loading.revert_weight_conversion", ("model", "state_dict"))
    _TRANSFORMERS.call(getattr(AttentionInterface, "register", None), "AttentionInterface.register", ("key", "value"))
