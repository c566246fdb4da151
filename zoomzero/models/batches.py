"""Batches by tokens: what fits into memory depends on tokens, not on how many prompts hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Of a forward without gradients. A 7B model in bfloat16 holds 15 GB of weights and at most 160 kB per token of such a
# forward, 5 GB: it fits 24 GB. The arithmetic is in docs/shared_prefixes.md.
TOKENS_PER_FORWARD = 32_768


def batches_of(sizes: Sequence[int], limit: int) -> Iterator[range]:
    """Neighbouring indices whose sizes add up to at most `limit`; one whose own size is larger is alone.

    Raises:
        ValueError: the limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"batches_of: a batch must hold at least 1 token, got {limit}; raise the limit")
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            yield range(start, index)
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))
