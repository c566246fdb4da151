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

from zoomzero_kernels.attention.blocks import Block, Kernel
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

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], causal: bool, scale: float
    ) -> Iterator[tuple[Block, Tensor, Tensor]]:
        for block in blocks:
            out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                block.of_queries(query), block.of_keys(key), block.of_keys(value), 0.0, causal, scale=scale
            )
            yield block, out, logsumexp

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        blocks: Sequence[Block],
        causal: bool,
        scale: float,
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        for block in blocks:
            yield (
                block,
                *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    block.of_queries(grad),
                    block.of_queries(query),
                    block.of_keys(key),
                    block.of_keys(value),
                    block.of_queries(out),
                    block.of_queries(logsumexp),
                    0.0,
                    causal,
                    scale=scale,
                ),
            )


class RaggedFlashKernel:
    """torch's flash attention for CUDA: all blocks of a kind in one ragged call, whatever their number and lengths.

    Blocks of one row are views of it; those of several rows are copied next to each other, as the kernel wants them.
    The offsets of the blocks reach the device by a copy that the host does not wait for.
    """

    name = "flash"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], causal: bool, scale: float
    ) -> Iterator[tuple[Block, Tensor, Tensor]]:
        if not blocks:
            return
        queries, sizes = _of_queries(blocks)
        keys, _ = _of_keys(blocks)
        out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            _joined(query, queries),
            _joined(key, keys),
            _joined(value, keys),
            *_offsets(blocks, query.device),
            0.0,
            causal,
            False,
            scale=scale,
        )
        for block, part, sums in zip(blocks, out.split(sizes), logsumexp.split(sizes, dim=1), strict=True):
            yield block, _separated(part, block.num_windows), sums.unflatten(1, (block.num_windows, -1)).transpose(0, 1)

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        blocks: Sequence[Block],
        causal: bool,
        scale: float,
    ) -> Iterator[tuple[Block, Tensor, Tensor, Tensor]]:
        if not blocks:
            return
        queries, query_sizes = _of_queries(blocks)
        keys, key_sizes = _of_keys(blocks)
        # Without dropout the state of the random numbers is not read.
        unused = torch.empty(2, dtype=torch.int64, device=query.device)
        gradients = torch.ops.aten._flash_attention_backward(
            _joined(grad, queries),
            _joined(query, queries),
            _joined(key, keys),
            _joined(value, keys),
            _joined(out, queries),
            _joined(logsumexp, queries).t().contiguous(),
            *_offsets(blocks, query.device),
            0.0,
            causal,
            unused,
            unused,
            scale=scale,
        )
        split = [part.split(sizes) for part, sizes in zip(gradients, (query_sizes, key_sizes, key_sizes), strict=True)]
        for block, *parts in zip(blocks, *split, strict=True):
            grad_query, grad_key, grad_value = (_separated(part, block.num_windows) for part in parts)
            yield block, grad_query, grad_key, grad_value


def _of_queries(blocks: Sequence[Block]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """The places (row, start, length) of the blocks' queries, and how many each block has."""
    places = [(block.row, block.query_start, block.num_windows * block.query_length) for block in blocks]
    return places, [length for _, _, length in places]


def _of_keys(blocks: Sequence[Block]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """As `_of_queries`, of the keys."""
    places = [(block.row, block.key_start, block.num_windows * block.key_length) for block in blocks]
    return places, [length for _, _, length in places]


def _joined(tensor: Tensor, places: Sequence[tuple[int, int, int]]) -> Tensor:
    """The places of tensor [P, H, L, ...] one after the other, [tokens, H, ...]: a view where they are neighbours."""
    runs: list[tuple[int, int, int]] = []
    for row, start, length in places:
        if runs and (runs[-1][0], sum(runs[-1][1:])) == (row, start):
            runs[-1] = (row, runs[-1][1], runs[-1][2] + length)
        else:
            runs.append((row, start, length))
    pieces = [tensor[row].transpose(0, 1).narrow(0, start, length) for row, start, length in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


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
    if query.device.type == "cuda" and _ragged_flash_takes(query) and cuda_flash_fits():
        return RaggedFlashKernel()
    return EagerKernel()


def _ragged_flash_takes(query: Tensor) -> bool:
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
        (_, out, sums), *_ = kernel.forward(query, key, key, [block], True, 1.0)
        (_, *grads), *_ = kernel.backward(query, query, key, key, out, sums, [block], True, 1.0)
        return [out, sums, *grads]

    try:
        pairs = zip(results(CpuFlashKernel()), results(EagerKernel()), strict=True)
        return all(ours.shape == truth.shape and torch.allclose(ours, truth) for ours, truth in pairs)
    except RuntimeError:
        return False
