"""Logits of a language-model head in chunks of tokens, and the gradients that flow back through it.

Note [Chunk size]: a chunk of n rows holds n * V logits. Every chunk reads the weight [V, D] once or twice and, if the
weight is trained, reads and writes its gradient once, so few large chunks are faster; memory wants small ones. A
twelfth of the valid rows keeps the logits within 1/12 of the full tensor; a small vocabulary is done in one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.checks import check_device, describe
from zoomzero_kernels.policy.options import LOGITS_DTYPES

_CHUNK_SHARE = 12
# Below this many logits (16 MiB of float32) a chunk is not worth splitting.
_SMALL_CHUNK_ELEMENTS = 1 << 22


def check_head(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Check hidden [B, T, D], weight [V, D] and bias [V] against each other."""
    if hidden.dim() != 3 or hidden.dtype not in LOGITS_DTYPES:
        raise ValueError(f"{op}: hidden must be floating point [B, T, D], got {describe(hidden)}; do not flatten it")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[2] or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: weight must be [V, D] with D = {hidden.shape[2]}, got {describe(weight)}; pass lm_head.weight"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{op}: bias must be [V] with V = {weight.shape[0]}, got {describe(bias)}; pass lm_head.bias")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype != hidden.dtype:
            raise TypeError(
                f"{op}: {name} must have the dtype of hidden, {describe(hidden)}, got {describe(tensor)}; "
                "cast one of them"
            )
        check_device(op, name, tensor, hidden)


def rows_per_chunk(num_rows: int, vocab_size: int) -> int:
    """Rows of logits to hold at a time; see Note [Chunk size]."""
    return max(1, -(-num_rows // _CHUNK_SHARE), _SMALL_CHUNK_ELEMENTS // vocab_size)


def chunk_logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (start, rows [n, D], logits [n, V]) over hidden rows [N, D].

    The logits may be overwritten, and are, by the next chunk.
    """
    size = rows_per_chunk(rows.shape[0], weight.shape[0])
    buffer = rows.new_empty((min(size, rows.shape[0]), weight.shape[0]))
    for start in range(0, rows.shape[0], size):
        chunk = rows[start : start + size]
        logits = torch.mm(chunk, weight.t(), out=buffer[: chunk.shape[0]])
        if bias is not None:
            logits += bias
        yield start, chunk, logits


def valid_rows(hidden: Tensor, valid: Tensor) -> Tensor:
    """Hidden states [N, D] of the valid tokens of [B, T, D].

    Where all are valid no copy is made, if that can be seen: on a GPU the look would wait for it.
    """
    if valid.device.type == "cpu" and bool(valid.all()):
        return hidden.reshape(-1, hidden.shape[2])
    return hidden[valid]


def scatter(parts: Sequence[Sequence[Tensor]], valid: Tensor, outputs: Sequence[Tensor]) -> None:
    """Put the results [1, n, ...] of chunks of valid tokens in their places of the outputs [B, T, ...]."""
    for index, output in enumerate(outputs):
        if parts:
            output[valid] = torch.cat([part[index] for part in parts], dim=1).squeeze(0)


class HeadNeeds(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool


def empty_gradients(hidden: Tensor, weight: Tensor, needs: HeadNeeds) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors like the results of HeadGradients, without values."""
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    first, second, third = (
        weight.new_empty(shape if needed else (0,)) for shape, needed in zip(shapes, needs, strict=True)
    )
    return first, second, third


class HeadGradients:
    """Accumulates the gradients of hidden rows, weight and bias over chunks of rows.

    The weight's gradient is summed in float32 for 16-bit weights, in the weight's dtype otherwise.
    """

    def __init__(self, rows: Tensor, weight: Tensor, needs: HeadNeeds) -> None:
        wide = torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype
        self._weight = weight
        self._started = False
        self.hidden = torch.empty_like(rows) if needs.hidden else None
        self.weight = torch.empty(weight.shape, dtype=wide, device=weight.device) if needs.weight else None
        self.bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs.bias else None

    def add(self, start: int, rows: Tensor, grad_logits: Tensor) -> None:
        """Take the gradient [n, V] of the logits of hidden rows [n, D] that begin at ``start``."""
        if self.hidden is not None:
            torch.mm(grad_logits, self._weight, out=self.hidden[start : start + rows.shape[0]])
        if self.weight is not None:
            self._add_weight(rows, grad_logits)
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=self.bias.dtype)

    def _add_weight(self, rows: Tensor, grad_logits: Tensor) -> None:
        assert self.weight is not None
        left, right = grad_logits.t(), rows
        if self.weight.dtype != rows.dtype:
            left, right = left.to(self.weight.dtype), right.to(self.weight.dtype)
        if self._started:
            self.weight.addmm_(left, right)
        else:
            torch.mm(left, right, out=self.weight)
        self._started = True

    def results(self, hidden: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of hidden [B, T, D], weight [V, D] and bias [V] in their dtypes; empty where not wanted."""
        if self.weight is not None and not self._started:
            self.weight.zero_()
        grad_hidden = hidden.new_empty(0)
        if self.hidden is not None:
            if self.hidden.shape[0] == valid.numel():
                grad_hidden = self.hidden.view(hidden.shape)
            else:
                grad_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
                grad_hidden[valid] = self.hidden
        grad_weight = hidden.new_empty(0) if self.weight is None else self.weight.to(self._weight.dtype)
        grad_bias = hidden.new_empty(0) if self.bias is None else self.bias.to(self._weight.dtype)
        return grad_hidden, grad_weight, grad_bias
