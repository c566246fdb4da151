"""Batches bounded in tokens, which cost and memory follow, not in items."""

from __future__ import annotations

from collections.abc import Sequence

# Note [A bound in tokens]
# In a forward without gradients a token takes some 90 kB of activations in a 3B model, 150 kB in a 7B model (bfloat16:
# three inner vectors of the MLP, 3 * 11008 or 3 * 18944 numbers, and about a dozen of the hidden size), in the cache
# of keys and values 37 kB or 57 kB. limits.FORWARD_TOKENS, 32768 tokens in a forward and so 262144 in the cache, is
# 3 + 10 GB beside 6 GB of weights for a 3B model, which fits a card of 24 GB, and 5 + 15 GB beside 15 GB for a 7B
# model, which fits one of 80 GB; 8192 fit a 7B model on 24 GB. This is arithmetic, not measured on a GPU.

# Tokens whose keys and values are kept while responses are written, per token of a forward.
CACHED_PER_FORWARD = 8


def by_tokens(lengths: Sequence[int], max_tokens: int) -> list[range]:
    """Neighbours together as far as their lengths add up to at most `max_tokens`; a longer item stands alone.

    lengths: tokens of the items; the ranges hold their places, in order.
    """
    batches: list[range] = []
    start = total = 0
    for place, length in enumerate(lengths):
        if place > start and total + length > max_tokens:
            batches.append(range(start, place))
            start, total = place, 0
        total += length
    if start < len(lengths):
        batches.append(range(start, len(lengths)))
    return batches
