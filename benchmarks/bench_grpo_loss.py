"""grpo_loss, forward and backward, against eager torch, torch.compile and TRL: fp32 logits [512, 151936], 80 % valid.

The bars: at least 2x faster than eager log_softmax + gather + clip, 3x than torch.compile of it and 20x than TRL's
selective_log_softmax path; peak extra memory at most 1.05x the logits, 0.05x in place. Scaling rows follow T and V.
TRL's path loops over the first dimension, so it is measured on the 512 rows as such and as 4 sequences of 128 tokens.
"In place" overwrites the logits, which are restored between rounds, untimed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from harness import peak_bytes, print_table, serve_memory, write_results
from torch import Tensor
from trl.trainer.utils import selective_log_softmax

from zoomzero.bench.timing import copy_gigabytes_per_second, interleave, peak_bytes_during, timing_row
from zoomzero_kernels import grpo_loss, reference, selective_logps

TOKENS, VOCAB = 512, 151936
SCALING = (
    *((tokens, 32000) for tokens in (128, 512, 2048, 8192)),
    *((512, vocab) for vocab in (32000, 65536, 131072, 262144)),
)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(tokens: int, vocab: int) -> Inputs:
    """logits [4, T/4, V] requiring grad, ids, advantages, mask of 80 %, and slightly off-policy old_logps."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, tokens // 4)
    logits = torch.randn(*shape, vocab, generator=generator)
    ids = torch.randint(0, vocab, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.8
    old = selective_logps(logits, ids) + 0.05 * torch.randn(shape, generator=generator)
    return logits.requires_grad_(), ids, torch.randn(shape, generator=generator), mask, old


def clipped_mean(logps: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    """The loss from log-probabilities, as every trainer writes it."""
    ratio = (logps - old).exp()
    token_loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return (token_loss * mask).sum() / mask.sum().clamp(min=1.0)


def eager_loss(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    logps = torch.log_softmax(logits, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return clipped_mean(logps, advantages, mask, old)


def trl_loss(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return clipped_mean(selective_log_softmax(logits, ids), advantages, mask, old)


def trl_loss_of_rows(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return trl_loss(*(tensor.flatten(0, 1) for tensor in (logits, ids, advantages, mask, old)))


def our_loss(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return grpo_loss(logits, ids, advantages, mask, old_logps=old).loss


def our_loss_inplace(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return grpo_loss(logits, ids, advantages, mask, old_logps=old, inplace=True).loss


IN_PLACE = "ours, in place"
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ours": our_loss,
    IN_PLACE: our_loss_inplace,
    "eager torch": eager_loss,
    "torch.compile": torch.compile(eager_loss),
    "TRL selective_log_softmax, rows": trl_loss_of_rows,
    "TRL selective_log_softmax, 4 sequences": trl_loss,
}


def step(loss: Callable[..., Tensor], inputs: Inputs) -> None:
    """Forward and backward; the gradient is dropped, so that every step allocates it anew."""
    inputs[0].grad = None
    loss(*inputs).backward()


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<tokens>|<vocab>" above its inputs, the gradient included."""
    torch.set_num_threads(2)
    name, tokens, vocab = case.split("|")
    step(LOSSES[name], make_inputs(8, int(vocab)))
    inputs = make_inputs(int(tokens), int(vocab))
    return peak_bytes_during(lambda: step(LOSSES[name], inputs))


def check() -> None:
    """All candidates agree on a small case before any is timed."""
    inputs = make_inputs(16, 1000)
    truth = reference.grpo_loss(inputs[0].detach().double(), *inputs[1:4], old_logps=inputs[4]).loss
    for name, loss in LOSSES.items():
        inputs = make_inputs(16, 1000)  # anew, since one of them overwrites the logits
        torch.testing.assert_close(loss(*inputs).double(), truth, atol=1e-5, rtol=1e-4, msg=name)


def measure(tokens: int, vocab: int, names: tuple[str, ...], rounds: int, bandwidth: float) -> list[dict[str, object]]:
    inputs = make_inputs(tokens, vocab)
    overwritten = make_inputs(tokens, vocab) if IN_PLACE in names else inputs
    timings = interleave(
        {name: partial(step, LOSSES[name], overwritten if name == IN_PLACE else inputs) for name in names},
        rounds=rounds,
        repeats=2,
        prepare={IN_PLACE: lambda: overwritten[0].data.copy_(inputs[0].data)},
    )
    # One read of the valid rows, one write of the gradient.
    moved = inputs[0].nbytes * 1.8
    rows = []
    for name, timing in timings.items():
        extra = peak_bytes(__file__, f"{name}|{tokens}|{vocab}")
        rows.append(
            {
                "tokens": tokens,
                "vocabulary": vocab,
                "candidate": name,
                **timing_row(timing),
                "times_ours": round(timing.speedup_of(timings["ours"]), 2),
                **({"times_in_place": round(timing.speedup_of(timings[IN_PLACE]), 2)} if IN_PLACE in names else {}),
                "gigabytes_per_second": round(moved / timing.median_ms / 1e6, 2),
                "copy_gigabytes_per_second": round(bandwidth, 2),
                "extra_peak_over_logits": round(extra / inputs[0].nbytes, 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scaling-rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    check()
    bandwidth = copy_gigabytes_per_second()
    rows = measure(TOKENS, VOCAB, tuple(LOSSES), arguments.rounds, bandwidth)
    print_table(rows)
    scaling: list[dict[str, object]] = []
    for tokens, vocab in SCALING:
        scaling += measure(tokens, vocab, ("ours", "eager torch"), arguments.scaling_rounds, bandwidth)
    print_table(scaling)
    print(f"written to {write_results('grpo_loss', [*rows, *scaling])}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
