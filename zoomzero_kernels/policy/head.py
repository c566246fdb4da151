"""Logits of a language-model head in chunks of tokens, and the gradients that flow back through it.

Note [Chunk size]: a chunk of n rows holds n * V logits. Every chunk reads the weight [V, D] once or twice and, if the
weight is trained, reads and writes its gradient once, so few large chunks are faster; memory wants small ones. On the
CPU a twelfth of the valid rows keeps the logits within 1/12 of the full tensor; a small vocabulary is done at once. On
a GPU fewer than 2,048 rows leave the matmuls waiting for the weight, and more than a gigabyte gains nothing.

Note [Silent rows]: a token of advantage 0, say, has results and no gradient. Rows that are known to have none come last
and in chunks of their own, for which neither of the backward matmuls is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.host.checks import check_device, describe
from zoomzero_kernels.policy.tensors import LOGITS_DTYPES

_CHUNK_SHARE = 12
# Below this many logits (16 MiB of float32) a chunk is not worth splitting.
_SMALL_CHUNK_ELEMENTS = 1 << 22
_CUDA_CHUNK_BYTES = 1 << 30
_CUDA_ROWS = (2048, 4096)
_HALVES = (torch.bfloat16, torch.float16)


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


def check_grad_weight(op: str, grad_weight: Tensor, multiplied: Tensor, weight: Tensor) -> None:
    """Check what takes the gradient of a weight [V, D], that of ``multiplied``: the weight as autocast left it."""
    dtypes = (sum_dtype(multiplied), weight.dtype)
    if grad_weight.shape != weight.shape or grad_weight.dtype not in dtypes or grad_weight.requires_grad:
        raise ValueError(
            f"{op}: grad_weight must be {' or '.join(dict.fromkeys(map(str, dtypes)))} {list(weight.shape)} that "
            f"requires no gradient, got {describe(grad_weight)}; pass weight.grad or torch.zeros_like(weight)"
        )
    check_device(op, "grad_weight", grad_weight, weight)


class HeadInputs(NamedTuple):
    """A head as the ops multiply with it: hidden [B, T, D], weight [V, D], bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def under_autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadInputs:
    """The head in the dtype in which torch.autocast, where it is on, would multiply; gradients go through the cast."""
    device = hidden.device.type
    inputs = HeadInputs(hidden, weight, bias)
    if not torch.is_autocast_enabled(device) or torch.float64 in (hidden.dtype, weight.dtype):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return HeadInputs(*(None if x is None else x.to(dtype) for x in inputs))  # type: ignore[arg-type]


class SoftCap(NamedTuple):
    """``cap * tanh(logits * scale / cap)`` of the logits; a cap of 0 stands for none."""

    scale: float = 1.0
    cap: float = 0.0

    def apply(self, logits: Tensor) -> Tensor | None:
        """Cap in place; returns the derivative, None for no cap."""
        if self.cap == 0:
            return None
        logits.mul_(self.scale / self.cap).tanh_()
        slope = (1 - logits.square()).mul_(self.scale)
        logits.mul_(self.cap)
        return slope


def rows_per_chunk(num_rows: int, vocab_size: int, like: Tensor) -> int:
    """Rows of logits, of the dtype and device of ``like``, to hold at a time; see Note [Chunk size]."""
    if like.device.type == "cuda":
        least, most = _CUDA_ROWS
        return min(most, max(least, _CUDA_CHUNK_BYTES // (vocab_size * like.element_size()) // 256 * 256))
    return max(1, -(-num_rows // _CHUNK_SHARE), _SMALL_CHUNK_ELEMENTS // vocab_size)


class ValidRows(NamedTuple):
    """Which tokens of [B, T] have rows, in which order.

    places: their indices [N] into B * T, None for all of them in order.
    num_learning: how many of them, the first, may have a gradient: see Note [Silent rows].
    """

    places: Tensor | None
    num_learning: int

    @classmethod
    def of(cls, valid: Tensor, learning: Tensor | None = None) -> ValidRows:
        """Of a mask [B, T] and of the tokens that may have a gradient, None for all. The one wait for a GPU."""
        if valid.device.type == "cpu" and bool(valid.all()) and (learning is None or bool(learning.all())):
            return cls(None, valid.numel())
        first = (valid if learning is None else valid & learning).flatten().nonzero().squeeze(-1)
        if learning is None:
            return cls(first, first.shape[0])
        last = (valid & ~learning).flatten().nonzero().squeeze(-1)
        return cls(torch.cat([first, last]), first.shape[0])

    def take(self, tensor: Tensor) -> Tensor:
        """Rows [N, ...] of a tensor [B, T, ...]."""
        flat = tensor.reshape(-1, *tensor.shape[2:])
        return flat if self.places is None else flat.index_select(0, self.places)

    def spread(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Rows [N, ...] in their places of [B, T, ...], 0 elsewhere; the same memory if all have one."""
        if self.places is None:
            return rows.view(shape)
        spread = rows.new_zeros(shape)
        spread.view(-1, *shape[2:]).index_copy_(0, self.places, rows)
        return spread


class Chunk(NamedTuple):
    """Some rows and their logits [n, V], which may be overwritten; silent: no gradient is needed of them.

    slope: derivative of the logits in what the head made, None for 1.
    """

    window: slice
    rows: Tensor
    logits: Tensor
    silent: bool
    slope: Tensor | None


def chunks(rows: Tensor, weight: Tensor, bias: Tensor | None, num_learning: int, cap: SoftCap) -> Iterator[Chunk]:
    """Chunks over hidden rows [N, D]; the next one takes the memory of its logits."""
    num_rows = rows.shape[0]
    size = rows_per_chunk(num_rows, weight.shape[0], weight)
    buffer = rows.new_empty((min(size, num_rows), weight.shape[0]))
    for first, end in ((0, num_learning), (num_learning, num_rows)):
        for start in range(first, end, size):
            window = slice(start, min(start + size, end))
            chunk = rows[window]
            logits = torch.mm(chunk, weight.t(), out=buffer[: chunk.shape[0]])
            if bias is not None:
                logits += bias
            yield Chunk(window, chunk, logits, start >= num_learning, cap.apply(logits))


def gathered(parts: Sequence[Sequence[Tensor]], rows: ValidRows, empty: Sequence[Tensor]) -> list[Tensor]:
    """The results [1, n, ...] of chunks of valid tokens in their places of [B, T, ...]; ``empty`` without chunks."""
    if not parts:
        return list(empty)
    columns = (torch.cat(column, dim=1).squeeze(0) for column in zip(*parts, strict=True))
    return [rows.spread(column, like.shape) for column, like in zip(columns, empty, strict=True)]


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


def sum_dtype(weight: Tensor) -> torch.dtype:
    """In which a weight's gradient is summed over chunks of rows: float32 for 16-bit weights, else the weight's own."""
    return torch.float32 if weight.dtype in _HALVES else weight.dtype


class HeadGradients:
    """Accumulates the gradients of hidden rows, weight and bias over chunks of rows.

    sums: [V, D] of the dtype of `sum_dtype`, to which the weight's gradient is added; a tensor of its own if None.
    """

    def __init__(self, rows: Tensor, weight: Tensor, needs: HeadNeeds, sums: Tensor | None = None) -> None:
        wide = sum_dtype(weight)
        self._weight = weight
        self._started = sums is not None
        self.hidden = torch.empty_like(rows) if needs.hidden else None
        self.weight = sums
        if sums is None and needs.weight:
            self.weight = torch.empty(weight.shape, dtype=wide, device=weight.device)
        self.bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if needs.bias else None

    def add(self, chunk: Chunk) -> None:
        """Take the gradient of the logits of a chunk, which stands in their place."""
        grad_logits = chunk.logits if chunk.slope is None else chunk.logits.mul_(chunk.slope)
        if self.hidden is not None:
            torch.mm(grad_logits, self._weight, out=self.hidden[chunk.window])
        if self.weight is not None:
            self._add_weight(chunk.rows, grad_logits)
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=self.bias.dtype)

    def _add_weight(self, rows: Tensor, grad_logits: Tensor) -> None:
        assert self.weight is not None
        left, right = grad_logits.t(), rows
        if rows.is_cuda and rows.dtype in _HALVES:
            # Products of 16-bit numbers are exact in float32: the tensor cores sum what a matmul in float32 would.
            if self._started:
                torch.addmm(self.weight, left, right, out_dtype=torch.float32, out=self.weight)
            else:
                torch.mm(left, right, out_dtype=torch.float32, out=self.weight)
        else:
            if self.weight.dtype != rows.dtype:
                left, right = left.to(self.weight.dtype), right.to(self.weight.dtype)
            if self._started:
                self.weight.addmm_(left, right)
            else:
                torch.mm(left, right, out=self.weight)
        self._started = True

    def add_weight_to(self, total: Tensor, scale: Tensor) -> None:
        """Leave the weight's gradient times ``scale`` in ``total`` [V, D], added, and not among the results."""
        if self.weight is not None and self.weight is not total and self._started:
            total += self.weight.mul_(scale)
        self.weight = None

    def results(self, hidden: Tensor, rows: ValidRows) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of hidden [B, T, D], weight [V, D] and bias [V] in their dtypes; empty where not wanted."""
        if self.weight is not None and not self._started:
            self.weight.zero_()
        grad_hidden = hidden.new_empty(0)
        if self.hidden is not None:
            self.hidden[rows.num_learning :] = 0
            grad_hidden = rows.spread(self.hidden, hidden.shape)
        grad_weight = hidden.new_empty(0) if self.weight is None else self.weight.to(self._weight.dtype)
        grad_bias = hidden.new_empty(0) if self.bias is None else self.bias.to(self._weight.dtype)
        return grad_hidden, grad_weight, grad_bias
