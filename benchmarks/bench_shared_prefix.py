"""shared_prefix_attention, forward and backward, against torch's attention with the dense mask of a packed row.

The bars, for one row of a prefix of 8192 and 8 branches of 256, 16 heads of 64, float32, two threads: at least 1.8
times faster than the dense mask, and at most a quarter of its peak memory above inputs, output and gradients. Beside
each ratio stands its limit: the scores that a dense mask computes over those that are needed. FlexAttention, with a
block mask, is timed forward only: torch has no backward of it for the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from harness import interleave, peak_bytes, peak_bytes_during, print_table, serve_memory, timing_row, write_results
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from zoomzero_kernels import reference, shared_prefix_attention


@dataclass(frozen=True)
class Group:
    """A packed row: prefix and branch lengths in tokens, branches, heads of query and of key, head size."""

    prefix: int
    num_branches: int
    branch: int
    heads: int = 16
    key_heads: int = 16
    size: int = 64

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.prefix + self.num_branches * self.branch

    @property
    def limit(self) -> float:
        """Scores of the dense mask over scores needed: no way of computing the latter can be more times faster."""
        branches = self.num_branches * self.branch
        return self.length**2 / (self.prefix**2 / 2 + branches * self.prefix + branches * self.branch / 2)


GROUPS = {
    "the bar": Group(8192, 8, 256),
    "grouped heads": Group(8192, 8, 256, key_heads=2),
    "short prompt": Group(1024, 8, 256),
    "16 responses": Group(4096, 16, 128),
}


def make_inputs(group: Group) -> list[Tensor]:
    """query, key and value of one row, as a model hands them over, requiring gradients."""
    generator = torch.Generator().manual_seed(0)
    counts = (group.heads, group.key_heads, group.key_heads)
    return [
        torch.randn(1, group.length, count, group.size, generator=generator).transpose(1, 2).requires_grad_()
        for count in counts
    ]


def visible(group: Group, query: Tensor, key: Tensor) -> Tensor:
    """Whether place `query` sees place `key`."""
    branch = (query - group.prefix).div(group.branch, rounding_mode="floor")
    own = (key - group.prefix).div(group.branch, rounding_mode="floor")
    return (key <= query) & ((key < group.prefix) | (branch == own))


def dense_mask(group: Group) -> Tensor:
    """bool [1, 1, L, L], made once per step and used by every layer of a model."""
    places = torch.arange(group.length)
    return visible(group, places[:, None], places)[None, None]


@cache
def block_mask(group: Group) -> BlockMask:
    return create_block_mask(
        lambda _, __, query, key: visible(group, query, key), None, None, group.length, group.length, device="cpu"
    )


def ours(group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return shared_prefix_attention(query, key, value, [group.prefix], [[group.branch] * group.num_branches])


def dense(mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=key.shape[1] < query.shape[1])


def flex(group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (tensor.detach() for tensor in (query, key, value))
    return compiled_flex(query, key, value, block_mask=block_mask(group), enable_gqa=group.key_heads < group.heads)


compiled_flex = torch.compile(flex_attention)


def step(attention: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> None:
    """Forward and backward; gradients are dropped, so that every step allocates them anew."""
    torch.autograd.grad(attention(*inputs), inputs, grad)


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<group>", forward and backward, above inputs, output and gradients."""
    torch.set_num_threads(2)
    name, group = case.split("|")[0], GROUPS[case.split("|")[1]]
    small, inputs = Group(64, 2, 16), make_inputs(group)
    step(partial(ours, small), make_inputs(small), torch.ones(1, 16, small.length, 64))
    grad = torch.ones_like(inputs[0])

    def run() -> None:
        step(partial(ours, group) if name == "ours" else partial(dense, dense_mask(group)), inputs, grad)

    return peak_bytes_during(run) - inputs[0].nbytes - sum(tensor.nbytes for tensor in inputs)


def check(group: Group) -> None:
    """All candidates agree with float64 truth in output and gradients before any is timed."""
    inputs = make_inputs(group)
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = reference.shared_prefix_attention(*leaves, [group.prefix], [[group.branch] * group.num_branches])
    wanted = torch.autograd.grad(truth.sum(), leaves)
    for attention in (partial(ours, group), partial(dense, dense_mask(group))):
        out = attention(*inputs)
        torch.testing.assert_close(out.double(), truth, rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(torch.autograd.grad(out.sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flex(group, *inputs).double(), truth.detach(), rtol=1e-4, atol=1e-5)


def rows_of(name: str, group: Group, rounds: int) -> list[dict[str, object]]:
    """The table's rows of one group: forward and backward, then forward alone."""
    inputs = make_inputs(group)
    mask, grad = dense_mask(group), torch.ones_like(inputs[0])
    ways = {"ours": partial(ours, group), "dense mask": partial(dense, mask)}
    both = {way: partial(step, attention, inputs, grad) for way, attention in ways.items()}
    ways["FlexAttention"] = partial(flex, group)
    with torch.no_grad():
        forward = {way: partial(attention, *inputs) for way, attention in ways.items()}
        timings = {"forward": interleave(forward, rounds=rounds)}
    timings["forward + backward"] = interleave(both, rounds=rounds)
    extra = {way: peak_bytes(__file__, f"{way}|{name}") for way in both}
    return [
        {
            "group": name,
            "prefix": group.prefix,
            "branches": f"{group.num_branches} x {group.branch}",
            "heads": f"{group.heads}/{group.key_heads}",
            "pass": what,
            "candidate": way,
            **timing_row(timing),
            "times_ours": round(timing.speedup_of(of_pass["ours"]), 2),
            "limit": round(group.limit, 2),
            "extra_peak_mb": round(extra[way] / 1e6, 1) if what != "forward" else None,
        }
        for what, of_pass in timings.items()
        for way, timing in of_pass.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    check(Group(300, 3, 40, 4, 2, 32))
    rows = [row for name in arguments.groups for row in rows_of(name, GROUPS[name], arguments.rounds)]
    print_table(rows)
    print(f"written to {write_results('shared_prefix', rows)}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
