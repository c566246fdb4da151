"""token_resample, forward and backward, against a loop of adaptive pooling.

128 slices of 26x46 tokens, D = 3584, to 13x23. The bar: at least 5x faster than the loop. The ratio is whole, so that
pooling and exact area averaging are the same numbers.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from harness import peak_bytes, print_table, serve_memory, write_results
from torch import Tensor

from zoomzero.bench.timing import copy_gigabytes_per_second, interleave, peak_bytes_during, timing_row
from zoomzero_kernels import reference, token_resample

NUM_SLICES, HEIGHT, WIDTH, DIM = 128, 26, 46, 3584
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def pooling_loop(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    """What one writes without a kernel: pool every slice as an image of D channels."""
    pieces, first = [], 0
    sides = grid_thw[:, 1:].repeat_interleave(grid_thw[:, 0], dim=0).tolist()
    for (h, w), target in zip(sides, target_hw.tolist(), strict=True):
        image = tokens[first : first + h * w].T.view(1, -1, h, w)
        pooled = torch.nn.functional.adaptive_avg_pool2d(image, target)
        pieces.append(pooled.flatten(2)[0].T)
        first += h * w
    return torch.cat(pieces)


CANDIDATES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ours": token_resample,
    "pooling loop": pooling_loop,
    "reference": reference.token_resample,
}
# The reference is the truth, not a rival, and takes minutes.
TIMED = ("ours", "pooling loop")


def forward_and_backward(name: str, tokens: Tensor, grad: Tensor, num_slices: int) -> Tensor:
    leaf = tokens.detach().requires_grad_()
    out = CANDIDATES[name](leaf, *grids(num_slices))
    out.backward(grad)
    if leaf.grad is None:
        raise RuntimeError(f"{name}: backward must reach the tokens, got no gradient")
    return leaf.grad


def grids(num_slices: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([[num_slices, HEIGHT, WIDTH]]), torch.tensor([[HEIGHT // 2, WIDTH // 2]] * num_slices)


def make_inputs(num_slices: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens and the gradient of the result."""
    tokens = torch.empty(num_slices * HEIGHT * WIDTH, DIM, dtype=dtype)
    grad = torch.empty(num_slices * (HEIGHT // 2) * (WIDTH // 2), DIM, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    return tokens.normal_(generator=generator), grad.normal_(generator=generator)


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<dtype>|<slices>" above tokens, result and gradients."""
    torch.set_num_threads(2)
    name, dtype, slices = case.split("|")
    num_slices = int(slices)
    forward_and_backward(name, *make_inputs(1, DTYPES[dtype]), 1)
    tokens, grad = make_inputs(num_slices, DTYPES[dtype])
    return peak_bytes_during(lambda: forward_and_backward(name, tokens, grad, num_slices)) - tokens.nbytes - grad.nbytes


def check(dtype: torch.dtype) -> None:
    """The candidates agree before any is timed."""
    tokens, grad = make_inputs(2, dtype)
    expected = forward_and_backward("reference", tokens, grad, 2)
    for name in CANDIDATES:
        torch.testing.assert_close(CANDIDATES[name](tokens, *grids(2)), reference.token_resample(tokens, *grids(2)))
        torch.testing.assert_close(forward_and_backward(name, tokens, grad, 2), expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--slices", type=int, default=NUM_SLICES, help="fewer for a machine with little memory or time")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    bandwidth = copy_gigabytes_per_second()
    rows = []
    for dtype_name in arguments.dtypes:
        dtype = DTYPES[dtype_name]
        check(dtype)
        tokens, grad = make_inputs(arguments.slices, dtype)
        timings = interleave(
            {name: functools.partial(forward_and_backward, name, tokens, grad, arguments.slices) for name in TIMED},
            rounds=arguments.rounds,
        )
        moved = 2 * (tokens.nbytes + grad.nbytes)  # forward reads one and writes the other, backward the reverse
        del tokens, grad  # the memory measurements below make their own
        target = f"{HEIGHT // 2}x{WIDTH // 2}"
        for name, timing in timings.items():
            rows.append(
                {
                    "case": f"{arguments.slices} x {HEIGHT}x{WIDTH} to {target}, D={DIM}, {dtype_name}",
                    "candidate": name,
                    **timing_row(timing),
                    "times_ours": round(timing.speedup_of(timings["ours"]), 3),
                    "gigabytes_per_second": round(moved / timing.median_ms / 1e6, 2),
                    "copy_gigabytes_per_second": round(bandwidth, 2),
                    "extra_peak_megabytes": round(
                        peak_bytes(__file__, f"{name}|{dtype_name}|{arguments.slices}") / 1e6, 2
                    ),
                }
            )
    print_table(rows)
    print(f"written to {write_results('token_resample', rows)}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
