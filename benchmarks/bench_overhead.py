"""What a call costs besides its work: every op on inputs so small that nothing else counts, on one thread.

    python benchmarks/bench_overhead.py            # prints a table of microseconds
    PYTHONPATH=OTHER/CHECKOUT python benchmarks/bench_overhead.py --json   # the same of another build, for a comparison

Needs nothing of a checkout but the installed zoomzero_kernels, so that it can also measure older ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import zoomzero_kernels

CALLS = 200
ROUNDS = 15


def cases() -> dict[str, Callable[[], object]]:
    """A call of every op by name."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 8, generator=generator)
    hidden, weight = torch.randn(1, 2, 4, generator=generator), torch.randn(8, 4, generator=generator)
    ids = torch.tensor([[1, 5]])
    advantages, mask = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    rewards, credit = torch.ones(2, 2), torch.ones(2, 3)
    segments = torch.zeros(2, 4, dtype=torch.uint8)
    groups, valid = torch.zeros(2, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    frames = torch.zeros(1, 28, 28, 3, dtype=torch.uint8)
    tokens, grid, target = torch.randn(4, 8, generator=generator), torch.tensor([[1, 2, 2]]), torch.tensor([[1, 1]])
    kernels = zoomzero_kernels
    centre = (0.5, 0.5, 0.5)
    return {
        "frame_resample": lambda: kernels.frame_resample(frames, size=(28, 28), mean=centre, std=centre),
        "token_resample": lambda: kernels.token_resample(tokens, grid, target),
        "token_advantages": lambda: kernels.token_advantages(rewards, segments, credit, groups, valid),
        "grpo_loss": lambda: kernels.grpo_loss(logits, ids, advantages, mask),
        "linear_grpo_loss": lambda: kernels.linear_grpo_loss(hidden, weight, ids, advantages, mask),
        "selective_logps": lambda: kernels.selective_logps(logits, ids),
        "linear_selective_logps": lambda: kernels.linear_selective_logps(hidden, weight, ids),
    }


def microseconds_per_call(call: Callable[[], object]) -> float:
    """Of processor time, the smallest of the rounds' means: what disturbs a round only adds to it."""
    for _ in range(CALLS):
        call()
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - started) / CALLS * 1e6)
    return min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: microseconds_per_call(call) for name, call in cases().items()}
    if options.json:
        print(json.dumps(found))
        return
    for name, microseconds in found.items():
        print(f"{name:24} {microseconds:8.1f} us")
    print(f"{'median':24} {statistics.median(found.values()):8.1f} us")


if __name__ == "__main__":
    main()
