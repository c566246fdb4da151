"""linear_grpo_loss, forward and backward, against Liger's chunked loss and TRL's fused head: 1024 tokens, V 151936.

The bars, at D 2048 in float32: peak extra memory at most 10 % of the full logits; time at most that of Liger's chunked
loss at its best chunk size and of TRL's fused head; with half of the tokens at advantage 0, at most 0.75 of the time
(one of three matmuls stays for them: 0.67). All gradients are wanted; gradients themselves are not "extra".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from harness import peak_bytes, print_table, serve_memory, write_results
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from torch import Tensor
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from zoomzero.bench.timing import interleave, peak_bytes_during, timing_row
from zoomzero_kernels import linear_grpo_loss, linear_selective_logps, reference

BATCH, WIDTH, HIDDEN, VOCAB = 8, 128, 2048, 151936
# Columns of a tile of TRL's fused head: its trainer's own setting.
TRL_CHUNK = 32768
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(batch: int, width: int, hidden: int, vocab: int) -> Inputs:
    """hidden, weight requiring grad, ids, one advantage a sequence, a full mask, slightly off-policy old_logps."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch, width, hidden, generator=generator)
    weight = torch.randn(vocab, hidden, generator=generator).mul_(hidden**-0.5)
    ids = torch.randint(0, vocab, (batch, width), generator=generator)
    mask = torch.ones(batch, width, dtype=torch.bool)
    with torch.no_grad():
        old = linear_selective_logps(states, weight, ids) + 0.05 * torch.randn(batch, width, generator=generator)
    return states.requires_grad_(), weight.requires_grad_(), ids, torch.randn(batch, generator=generator), mask, old


def our_loss(states: Tensor, weight: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return linear_grpo_loss(states, weight, ids, advantages, mask, old_logps=old).loss


def our_loss_of_half(
    states: Tensor, weight: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor
) -> Tensor:
    """Every other token at advantage 0, as where half of what was sampled earned what its group did."""
    tokens = advantages.unsqueeze(1) * (torch.arange(ids.shape[1]) % 2)
    return linear_grpo_loss(states, weight, ids, tokens, mask, old_logps=old).loss


def our_loss_added(
    total: Tensor, states: Tensor, weight: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor
) -> Tensor:
    """The weight's gradient added to what earlier micro-batches left."""
    return linear_grpo_loss(states, weight, ids, advantages, mask, old_logps=old, grad_weight=total).loss


def liger_loss(
    chunk_size: int, states: Tensor, weight: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor
) -> Tensor:
    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, chunk_size=chunk_size, epsilon_low=0.2, epsilon_high=0.28, compiled=False
    )
    return loss(states, weight, ids, mask.float(), advantages, old_per_token_logps=old)[0]


def trl_loss(states: Tensor, weight: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    rows = states.reshape(-1, states.shape[-1])
    outputs = ("log_probs", "entropy")
    logps = ChunkedLogProbFunction.apply(rows, weight, None, ids.reshape(-1), 1.0, TRL_CHUNK, None, 1.0, outputs)[0]
    ratio = (logps.view(mask.shape) - old).exp()
    credit = advantages.unsqueeze(1)
    return (-torch.min(ratio * credit, ratio.clamp(0.8, 1.28) * credit) * mask).sum() / mask.sum()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ours": our_loss,
    **{f"Liger chunked, {size} sequences": partial(liger_loss, size) for size in (1, 2, 8)},
    "TRL fused head": trl_loss,
}


def step(loss: Callable[..., Tensor], inputs: Inputs) -> None:
    """Forward and backward; gradients are dropped, so that every step allocates them anew."""
    inputs[0].grad = inputs[1].grad = None
    loss(*inputs).backward()


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<hidden>" above the inputs and the two gradients."""
    torch.set_num_threads(2)
    name, hidden = case.split("|")
    step(LOSSES[name], make_inputs(8, 2, 16, 64))
    inputs = make_inputs(BATCH, WIDTH, int(hidden), VOCAB)
    return peak_bytes_during(lambda: step(LOSSES[name], inputs)) - inputs[0].nbytes - inputs[1].nbytes


def check() -> None:
    """All candidates agree on loss and gradients of a small case before any is timed."""
    inputs = make_inputs(8, 4, 16, 300)
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs[:2]]
    reference.linear_grpo_loss(*leaves, *inputs[2:5], old_logps=inputs[5]).loss.backward()
    for name, loss in LOSSES.items():
        step(loss, inputs)
        for mine, truth in zip(inputs[:2], leaves, strict=True):
            assert mine.grad is not None
            assert truth.grad is not None
            torch.testing.assert_close(mine.grad.double(), truth.grad, atol=1e-5, rtol=1e-3, msg=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    check()
    inputs = make_inputs(BATCH, WIDTH, arguments.hidden, VOCAB)
    runs = {name: partial(step, loss, inputs) for name, loss in LOSSES.items()}
    runs["ours, half of the advantages 0"] = partial(step, our_loss_of_half, inputs)
    runs["ours, grad_weight="] = partial(step, partial(our_loss_added, torch.zeros_like(inputs[1])), inputs)
    timings = interleave(runs, rounds=arguments.rounds, warmup=0)
    logits_bytes = BATCH * WIDTH * VOCAB * 4
    extra = {name: peak_bytes(__file__, f"{name}|{arguments.hidden}") if name in LOSSES else None for name in timings}
    rows = [
        {
            "tokens": BATCH * WIDTH,
            "hidden": arguments.hidden,
            "vocabulary": VOCAB,
            "candidate": name,
            **timing_row(timing),
            "times_ours": round(timing.speedup_of(timings["ours"]), 2),
            "extra_peak_over_logits": extra[name] and round(extra[name] / logits_bytes, 3),
        }
        for name, timing in timings.items()
    ]
    print_table(rows)
    print(f"written to {write_results('linear_grpo_loss', rows)}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
