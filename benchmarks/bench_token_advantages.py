"""token_advantages against the per-sample loop of published trainers: 512 responses of 512 tokens, 4 rewards.

The bar: at least 100x faster than the loop. Scaling rows follow the number of responses and of tokens.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from harness import peak_bytes, print_table, serve_memory, write_results
from torch import Tensor

from zoomzero.bench.losses import advantages_in_a_loop
from zoomzero.bench.timing import Timing, interleave, peak_bytes_during, timing_row
from zoomzero_kernels import reference, token_advantages

NUM_REWARDS, NUM_SEGMENTS, GROUP = 4, 3, 8
SHAPES = ((512, 512), (64, 512), (4096, 512), (512, 128), (512, 2048), (512, 8192))


def make_inputs(batch: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rewards, segments, credit, group ids and mask of right-padded responses in groups of eight, shuffled."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(batch, NUM_REWARDS, generator=generator)
    lengths = torch.randint(width // 2, width + 1, (batch, 1), generator=generator)
    mask = torch.arange(width) < lengths
    third = torch.arange(width) * NUM_SEGMENTS // lengths
    segments = third.clamp(max=NUM_SEGMENTS - 1).to(torch.uint8)
    credit = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 3
    group_ids = torch.arange(batch) // GROUP
    return rewards, segments, credit, group_ids[torch.randperm(batch, generator=generator)], mask


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<batch>|<width>", its result included."""
    torch.set_num_threads(2)
    name, batch, width = case.split("|")
    run = {"ours": token_advantages, "loop": advantages_in_a_loop}[name]
    run(*make_inputs(16, 16))
    inputs = make_inputs(int(batch), int(width))
    return peak_bytes_during(lambda: run(*inputs))


def measure(batch: int, width: int, rounds: int) -> dict[str, Timing]:
    """Check that both agree, then time them in turns."""
    inputs = make_inputs(batch, width)
    truth = reference.token_advantages(*inputs)
    for run in (token_advantages, advantages_in_a_loop):
        torch.testing.assert_close(run(*inputs), truth, atol=1e-4, rtol=1e-4)
    return interleave(
        {"ours": partial(token_advantages, *inputs), "loop": partial(advantages_in_a_loop, *inputs)},
        rounds=rounds,
        repeats=2,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    rows = []
    for batch, width in SHAPES:
        timings = measure(batch, width, rounds if batch * width <= 512 * 512 else 5)
        for name, timing in timings.items():
            rows.append(
                {
                    "responses": batch,
                    "tokens": width,
                    "candidate": name,
                    **timing_row(timing),
                    "times_ours": round(timing.speedup_of(timings["ours"]), 1),
                    "peak_megabytes": round(peak_bytes(__file__, f"{name}|{batch}|{width}") / 1e6, 2),
                }
            )
    print_table(rows)
    print(f"written to {write_results('token_advantages', rows)}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
