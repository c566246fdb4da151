"""The blocks by the flash kernels inside torch, which return, and whose backward passes take, the log-sum-exp.

Note [Private kernels]
The kernels are aten ops whose names begin with an underscore: torch may change them in any release. Before the first
use their schemas are compared with the calls made here, and those that run on the CPU are tried on eight numbers. What
does not fit is not called: its place takes `EagerKernel`. `live_kernels` (build_info) says which are in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.attention.blocks import Block, Inputs, Kernel, Results
from zoomzero_kernels.attention.eager import EagerKernel


class _Call(NamedTuple):
    """How an aten op is called below.

    positional: names of the arguments passed by position, in order;
    num_results: how many results it must give. `scale` is passed by keyword; all other arguments must have a default.
    """

    positional: str
    num_results: int


_CPU_CALLS = {
    "_scaled_dot_product_flash_attention_for_cpu": _Call("query key value dropout_p is_causal", 2),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _Call(
        "grad_out query key value out logsumexp dropout_p is_causal", 3
    ),
}
_CUDA_CALLS = {
    "_flash_attention_forward": _Call(
        "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask", 5
    ),
    "_flash_attention_backward": _Call(
        "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal rng_state unused", 3
    ),
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class CpuFlashKernel:
    """torch's flash attention for the CPU, a call a block. See `zoomzero_kernels.attention.blocks.Kernel`."""

    name = "flash"

    def forward(self, inputs: Inputs, blocks: Sequence[Block], causal: bool) -> Iterator[tuple[Block, Tensor, Tensor]]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        for block in blocks:
            yield block, *flash(*inputs.of(block), 0.0, causal, scale=inputs.scale)

    def backward(
        self, inputs: Inputs, results: Results, blocks: Sequence[Block], causal: bool
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        for block in blocks:
            grad, *known = results.of(block)
            yield block, *flash(grad, *inputs.of(block), *known, 0.0, causal, scale=inputs.scale)


class RaggedFlashKernel:
    """torch's flash attention for CUDA: all blocks of a kind in one ragged call, whatever their number and lengths.

    Blocks of one row are views of it; those of several rows are copied next to each other, as the kernel wants them.
    The offsets of the blocks reach the device by a copy that the host does not wait for.
    """

    name = "flash"

    def forward(self, inputs: Inputs, blocks: Sequence[Block], causal: bool) -> Iterator[tuple[Block, Tensor, Tensor]]:
        if not blocks:
            return
        spans = _spans(blocks)
        out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            *_tokens(inputs, spans), *_offsets(blocks, inputs.query.device), 0.0, causal, False, scale=inputs.scale
        )
        sizes = spans.queries.sizes
        for block, part, sums in zip(blocks, out.split(sizes), logsumexp.split(sizes, dim=1), strict=True):
            yield block, _separated(part, block.num_windows), sums.unflatten(1, (block.num_windows, -1)).transpose(0, 1)

    def backward(
        self, inputs: Inputs, results: Results, blocks: Sequence[Block], causal: bool
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        if not blocks:
            return
        spans = _spans(blocks)
        # Without dropout the state of the random numbers is not read.
        unused = torch.empty(2, dtype=torch.int64, device=inputs.query.device)
        gradients = torch.ops.aten._flash_attention_backward(
            spans.queries.joined(results.grad),
            *_tokens(inputs, spans),
            spans.queries.joined(results.out),
            spans.queries.joined(results.logsumexp).t().contiguous(),
            *_offsets(blocks, inputs.query.device),
            0.0,
            causal,
            unused,
            unused,
            scale=inputs.scale,
        )
        sides = (spans.queries, spans.keys, spans.keys)
        split = [part.split(side.sizes) for part, side in zip(gradients, sides, strict=True)]
        for block, *parts in zip(blocks, *split, strict=True):
            grad_query, grad_key, grad_value = (_separated(part, block.num_windows) for part in parts)
            yield block, grad_query, grad_key, grad_value


class _Spans(NamedTuple):
    """The places of blocks in packed rows. starts: (row, first token) of each; sizes: tokens of each."""

    starts: list[tuple[int, int]]
    sizes: list[int]

    def joined(self, tensor: Tensor) -> Tensor:
        """The places of [P, H, L, ...] one after the other: [tokens, H, ...], a view where they are neighbours."""
        runs: list[tuple[int, int, int]] = []
        for (row, start), size in zip(self.starts, self.sizes, strict=True):
            if runs and (runs[-1][0], sum(runs[-1][1:])) == (row, start):
                runs[-1] = (row, runs[-1][1], runs[-1][2] + size)
            else:
                runs.append((row, start, size))
        pieces = [tensor[row].transpose(0, 1).narrow(0, start, size) for row, start, size in runs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class _Sides(NamedTuple):
    """The places of the blocks' queries and of their keys."""

    queries: _Spans
    keys: _Spans


def _spans(blocks: Sequence[Block]) -> _Sides:
    return _Sides(
        _Spans(
            [(block.row, block.query_start) for block in blocks],
            [block.num_windows * block.query_length for block in blocks],
        ),
        _Spans(
            [(block.row, block.key_start) for block in blocks],
            [block.num_windows * block.key_length for block in blocks],
        ),
    )


def _tokens(inputs: Inputs, spans: _Sides) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all blocks, as ragged flash takes them."""
    return spans.queries.joined(inputs.query), spans.keys.joined(inputs.key), spans.keys.joined(inputs.value)


def _separated(tokens: Tensor, count: int) -> Tensor:
    """[count * n, H, D] -> [count, H, n, D]."""
    return tokens.unflatten(0, (count, -1)).transpose(1, 2)


def _offsets(blocks: Sequence[Block], device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Offsets int32 [sequences + 1] of queries and of keys, and the longest of each, as ragged flash takes them."""
    queries = [block.query_length for block in blocks for _ in range(block.num_windows)]
    keys = [block.key_length for block in blocks for _ in range(block.num_windows)]
    both = torch.tensor([[0, *accumulate(queries)], [0, *accumulate(keys)]], dtype=torch.int32)
    if device.type == "cuda":
        both = both.pin_memory().to(device, non_blocking=True)
    return both[0], both[1], max(queries), max(keys)


def kernel_for(query: Tensor) -> Kernel:
    """The kernel that computes blocks of query [P, H, L, D]; see Note [Private kernels]."""
    if query.device.type == "cpu":
        return CpuFlashKernel() if query.dtype in _FLOATS and cpu_flash_fits() else EagerKernel()
    if query.device.type == "cuda" and ragged_flash_takes(query) and cuda_flash_fits():
        return RaggedFlashKernel()
    return EagerKernel()


def ragged_flash_takes(query: Tensor) -> bool:
    """Half precision, heads of up to 256 in steps of 8, compute capability 8.0: what FlashAttention-2 was built for."""
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def live_kernels() -> dict[str, str]:
    """By device type, what computes shared_prefix_attention: "flash", or "eager" where torch's schemas do not fit."""
    return {
        "cpu": "flash" if cpu_flash_fits() else "eager",
        "cuda": "flash" if cuda_flash_fits() else "eager",
    }


@cache
def cuda_flash_fits() -> bool:
    """Whether torch's ragged flash ops can be called as they are called here; ROCm's are other kernels."""
    return torch.version.cuda is not None and all(_callable(name, call) for name, call in _CUDA_CALLS.items())


@cache
def cpu_flash_fits() -> bool:
    """Whether torch's flash ops for the CPU can be called as they are called here, and know grouped heads."""
    return all(_callable(name, call) for name, call in _CPU_CALLS.items()) and _groups_heads()


def _callable(name: str, call: _Call) -> bool:
    """Whether aten has an op that can be called so."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    schema = packet.default._schema
    positional = call.positional.split()
    names = [argument.name for argument in schema.arguments]
    others = [argument for argument in schema.arguments if argument.name not in (*positional, "scale")]
    return (
        names[: len(positional)] == positional
        and "scale" in names
        and all(argument.has_default_value() for argument in others)
        and len(schema.returns) == call.num_results
    )


def _groups_heads() -> bool:
    """Try the CPU kernels on two heads over one, against `EagerKernel`: older releases want as many key heads."""
    query = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64).view(1, 2, 2, 1)
    key, block = query[:, :1], Block(0, 0, 2, 0, 2)

    def results(kernel: Kernel) -> list[Tensor]:
        inputs = Inputs(query, key, key, 1.0)
        (_, out, sums), *_ = kernel.forward(inputs, [block], True)
        (_, *grads), *_ = kernel.backward(inputs, Results(query, out, sums), [block], True)
        return [out, sums, *grads]

    try:
        pairs = zip(results(CpuFlashKernel()), results(EagerKernel()), strict=True)
        return all(ours.shape == truth.shape and torch.allclose(ours, truth) for ours, truth in pairs)
    except RuntimeError:
        return False
