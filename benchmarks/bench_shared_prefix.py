"""shared_prefix_attention, forward and backward, against torch's attention with the dense mask of a packed row.

The bars, for one row of a prefix of 8192 and 8 branches of 256, 16 heads of 64, float32, two threads: at least 1.8
times faster than the dense mask, and at most a quarter of its peak memory above inputs, output and gradients. Beside
each ratio stands its limit: the scores that a dense mask computes over those that are needed. FlexAttention, with a
block mask, is timed forward only: torch has no backward of it for the CPU.

Then log-probabilities and gradients of a model, see `shared_prefix_passes`: against rows as TRL holds them at least 4.5
times faster and a quarter of the memory above weights and gradients, against the dense mask 1.1 times faster, and TRL's
own trainer at least 4 times slower than with our mixin. The layers are alike, so fewer of them leave the ratios as they
are, but for the head's part; the table over prompts and completions takes one.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import torch
from harness import peak_bytes, print_table, serve_memory, write_results
from shared_prefix_passes import BASES, PASSES, TRAINERS, Rows, measure
from shared_prefix_passes import check as check_passes
from shared_prefix_passes import measure_memory as measure_memory_of_pass
from torch import Tensor

from zoomzero.bench.packed_group import Group, dense, dense_mask, flex, make_inputs, ours, step
from zoomzero.bench.timing import interleave, peak_bytes_during, timing_row
from zoomzero_kernels import reference

GROUPS = {
    "the bar": Group(8192, 8, 256),
    "grouped heads": Group(8192, 8, 256, key_heads=2),
    "short prompt": Group(1024, 8, 256),
    "16 responses": Group(4096, 16, 128),
}

# Prompt, completions and completion of the table over prompts and completions; unpacked, the longest take too long.
TABLE = {
    **{(prompt, count, 128): list(PASSES) for prompt in (512, 2048) for count in (4, 8, 16)},
    **{(8192, count, 128): ["ours", "dense mask"] for count in (4, 8, 16)},
}


def flex_forward(group: Group, *tensors: Tensor) -> Tensor:
    return flex(group, *(tensor.detach() for tensor in tensors))


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<group>", forward and backward, above inputs, output and gradients."""
    torch.set_num_threads(2)
    if "|model|" in case:
        name, shape = case.split("|model|")
        return measure_memory_of_pass(name, Rows.of(shape))
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
    torch.testing.assert_close(flex_forward(group, *inputs).double(), truth.detach(), rtol=1e-4, atol=1e-5)


def rows_of(name: str, group: Group, rounds: int) -> list[dict[str, object]]:
    """The table's rows of one group: forward and backward, then forward alone."""
    inputs = make_inputs(group)
    mask, grad = dense_mask(group), torch.ones_like(inputs[0])
    ways = {"ours": partial(ours, group), "dense mask": partial(dense, mask)}
    both = {way: partial(step, attention, inputs, grad) for way, attention in ways.items()}
    ways["FlexAttention"] = partial(flex_forward, group)
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
    parser.add_argument("--threads", type=int, default=2, help="1 where others share the processor")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument(
        "--layers", type=int, default=4, help="layers of the model, 24 as Qwen2.5-0.5B has; 0 leaves it out"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model")
    parser.add_argument("--model-rounds", type=int, default=1)
    parser.add_argument("--candidates", nargs="*", choices=BASES, default=list(BASES), help="of the model")
    parser.add_argument("--no-table", action="store_true", help="leave out the table over prompts and completions")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of the model's passes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.groups:
        check(Group(300, 3, 40, 4, 2, 32))
        rows = [row for name in arguments.groups for row in rows_of(name, GROUPS[name], arguments.rounds)]
        print_table(rows)
        print(f"written to {write_results('shared_prefix', rows)}")
    if arguments.layers or not arguments.no_table:
        with tempfile.TemporaryDirectory() as folder:
            check_passes(folder)
    if arguments.layers:
        shape = Rows(2048, 8, 128, arguments.layers, arguments.dtype)
        for name, kind in (("shared_prefix", PASSES), ("shared_prefix_trl", TRAINERS)):
            candidates = [candidate for candidate in arguments.candidates if candidate in kind]
            if candidates:
                save(f"{name}_{arguments.layers}_layers_{arguments.dtype}", {shape: candidates}, arguments)
    if not arguments.no_table:
        shapes = {Rows(*shape, 1, arguments.dtype): candidates for shape, candidates in TABLE.items()}
        save(f"shared_prefix_table_{arguments.dtype}", shapes, arguments)


def save(name: str, shapes: dict[Rows, list[str]], arguments: argparse.Namespace) -> None:
    """Measure passes of models, and write what is known after each shape: the long ones may be stopped."""
    rows: list[dict[str, object]] = []
    for shape, candidates in shapes.items():
        with_memory = shape.layers == arguments.layers and not arguments.no_memory
        rows += measure(shape, candidates, arguments.model_rounds, with_memory=with_memory)
        print_table(rows[-len(candidates) :])
        print(f"written to {write_results(name, rows)}", flush=True)


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
