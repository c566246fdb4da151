"""The losses and log-probabilities beside eager torch, torch.compile, TRL and Liger; advantages beside a loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from zoomzero.bench.case import Case, Place, dtype_name, rival
from zoomzero_kernels import grpo_loss, linear_grpo_loss, linear_selective_logps, selective_logps, token_advantages

# Columns of a tile of TRL's fused head: its trainer's own setting.
TRL_CHUNK = 32768
LOW, HIGH = 0.2, 0.28


def _step(loss: Callable[..., Tensor], leaves: tuple[Tensor, ...], *rest: Any) -> Tensor:
    """Forward and backward; gradients are dropped, so that every step allocates them anew. Returns the loss."""
    for leaf in leaves:
        leaf.grad = None
    value = loss(*leaves, *rest)
    value.backward()
    return value.detach()


def _clipped_mean(logps: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    ratio = (logps - old).exp()
    credit = advantages.unsqueeze(1)
    token_loss = -torch.min(ratio * credit, ratio.clamp(1 - LOW, 1 + HIGH) * credit)
    return (token_loss * mask).sum() / mask.sum().clamp(min=1.0)


def _eager_logps(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _eager_loss(logits: Tensor, ids: Tensor, *rest: Tensor) -> Tensor:
    return _clipped_mean(_eager_logps(logits, ids), *rest)


def _eager_linear_loss(hidden: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    return _eager_loss(hidden @ weight.t(), *rest)


def _eager_linear_logps(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return _eager_logps(hidden @ weight.t(), ids)


def _our_linear_logps(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    return cast(Tensor, linear_selective_logps(hidden, weight, ids))


def _our_logps(logits: Tensor, ids: Tensor) -> Tensor:
    # A pair only where entropies are asked for.
    return cast(Tensor, selective_logps(logits, ids))


def _our_loss(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return grpo_loss(logits, ids, advantages, mask, old_logps=old).loss


def _our_linear_loss(hidden: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    ids, advantages, mask, old = rest
    return linear_grpo_loss(hidden, weight, ids, advantages, mask, old_logps=old).loss


def _trl_logps() -> dict[str, Callable[..., Tensor]]:
    """TRL's log-probabilities of given logits, where TRL is installed."""
    trainer = rival("trl.trainer.utils")
    return {} if trainer is None else {"TRL": trainer.selective_log_softmax}


def _heads() -> dict[str, Callable[..., Tensor]]:
    """TRL's fused head and Liger's chunked loss, where they are installed."""
    found: dict[str, Callable[..., Tensor]] = {}
    chunked, liger = rival("trl.kernels.chunked_logprob"), rival("liger_kernel.chunked_loss")
    if chunked is not None:
        found["TRL fused head"] = partial(_trl_linear_loss, chunked.ChunkedLogProbFunction)
    if liger is not None:
        found["Liger chunked"] = partial(_liger_loss, liger.LigerFusedLinearGRPOLoss)
    return found


def _trl_linear_loss(function: Any, hidden: Tensor, weight: Tensor, ids: Tensor, *rest: Tensor) -> Tensor:
    rows = hidden.reshape(-1, hidden.shape[-1])
    outputs = ("log_probs", "entropy")
    logps = function.apply(rows, weight, None, ids.reshape(-1), 1.0, TRL_CHUNK, None, 1.0, outputs)[0]
    return _clipped_mean(logps.view(ids.shape), *rest)


def _liger_loss(make: Any, hidden: Tensor, weight: Tensor, ids: Tensor, *rest: Tensor) -> Tensor:
    advantages, mask, old = rest
    loss = make(beta=0.0, use_ref_model=False, chunk_size=1, epsilon_low=LOW, epsilon_high=HIGH, compiled=False)
    return loss(hidden, weight, ids, mask.to(hidden.dtype), advantages, old_per_token_logps=old)[0]


def _tokens(place: Place, batch: int, width: int, vocab: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, an advantage per response, a full mask and old log-probabilities near those of random logits."""
    ids = torch.randint(0, vocab, (batch, width), device=place.device)
    mask = torch.ones(batch, width, dtype=torch.bool, device=place.device)
    old = 0.1 * place.randn(batch, width) - torch.tensor(float(vocab)).log().item() - 0.5
    return ids, place.randn(batch), mask, old


def loss_cases(place: Place) -> Iterator[Case]:
    """grpo_loss and selective_logps on logits that are there."""
    batch, width, vocab = place.pick(tiny=(2, 4, 512), cpu=(4, 64, 32000), gpu=(8, 512, 151936))
    bars = {torch.bfloat16: 0.75, torch.float16: 0.75, torch.float32: 0.6}
    for dtype in place.pick(tiny=(*bars,), cpu=(torch.bfloat16, torch.float32), gpu=(*bars,)):
        logits = place.randn(batch, width, vocab, dtype=dtype).requires_grad_()
        tokens = _tokens(place, batch, width, vocab)
        size = f"[{batch}, {width}, {vocab}] {dtype_name(dtype)}"
        losses: dict[str, Callable[..., Tensor]] = {
            "ours": _our_loss,
            "eager": _eager_loss,
            **place.compiled(_eager_loss),
        }
        yield Case(
            "grpo_loss, forward and backward",
            size,
            {name: partial(_step, loss, (logits,), *tokens) for name, loss in losses.items()},
            moved_bytes=2 * logits.nbytes,
            bar=bars[dtype],
            synchronisations=0,
        )
        values = logits.detach()
        logps: dict[str, Callable[..., Tensor]] = {
            "ours": _our_logps,
            "eager": _eager_logps,
            **place.compiled(_eager_logps),
            **_trl_logps(),
        }
        yield Case(
            "selective_logps",
            size,
            {name: partial(function, values, tokens[0]) for name, function in logps.items()},
            moved_bytes=logits.nbytes,
            # TRL computes in the logits' own type.
            tolerance=1e-3 if dtype is torch.float32 else 0.1,
            bar=0.8,
            synchronisations=0,
        )


def linear_cases(place: Place) -> Iterator[Case]:
    """The same from hidden states and the weights of the head."""
    batch, width, vocab = place.pick(tiny=(2, 4, 512), cpu=(4, 64, 32000), gpu=(8, 512, 151936))
    dtype = place.pick(tiny=torch.float32, cpu=torch.float32, gpu=torch.bfloat16)
    for hidden_size in place.pick(tiny=(32,), cpu=(512,), gpu=(2048, 3584)):
        hidden = place.randn(batch, width, hidden_size, dtype=dtype).requires_grad_()
        weight = (place.randn(vocab, hidden_size) * hidden_size**-0.5).to(dtype).requires_grad_()
        tokens = _tokens(place, batch, width, vocab)
        size = f"{batch * width} tokens, D {hidden_size}, V {vocab} {dtype_name(dtype)}"
        one_product = 2 * batch * width * hidden_size * vocab
        losses: dict[str, Callable[..., Tensor]] = {
            "ours": _our_linear_loss,
            "eager": _eager_linear_loss,
            **place.compiled(_eager_linear_loss),
            **_heads(),
        }
        # Eager torch rounds the logits to the dtype, of which the loss then is a function.
        tolerance = 1e-3 if dtype is torch.float32 else 0.05
        yield Case(
            "linear_grpo_loss, forward and backward",
            size,
            {name: partial(_step, loss, (hidden, weight), *tokens) for name, loss in losses.items()},
            operations=3 * one_product,
            dtype=dtype,
            tolerance=tolerance,
            bar=0.6,
            synchronisations=1,
        )
        states, head = hidden.detach(), weight.detach()
        yield Case(
            "linear_selective_logps",
            size,
            {
                "ours": partial(_our_linear_logps, states, head, tokens[0]),
                "eager": partial(_eager_linear_logps, states, head, tokens[0]),
            },
            operations=one_product,
            dtype=dtype,
            tolerance=tolerance,
            bar=0.6,
            synchronisations=1,
        )


def token_advantages_cases(place: Place) -> Iterator[Case]:
    """Credit to tokens beside the loop over responses of published trainers."""
    batch, width = place.pick(tiny=(8, 16), cpu=(512, 512), gpu=(512, 512))
    segments = torch.randint(0, 3, (batch, width), dtype=torch.uint8, device=place.device)
    groups = torch.arange(batch, device=place.device) // 8
    mask = torch.ones(batch, width, dtype=torch.bool, device=place.device)
    arguments = (place.randn(batch, 4), segments, place.randn(4, 3), groups, mask)
    ways = {"ours": token_advantages, "loop over responses": advantages_in_a_loop}
    calls = {name: partial(way, *arguments) for name, way in ways.items()}
    yield Case("token_advantages", f"[{batch}, {width}], 4 rewards", calls, synchronisations=0)


def advantages_in_a_loop(rewards: Tensor, segments: Tensor, credit: Tensor, group_ids: Tensor, mask: Tensor) -> Tensor:
    """One response at a time: token rewards, lists by prompt, statistics of each prompt, normalisation.

    Shapes as `zoomzero_kernels.token_advantages` takes them.
    """
    token_rewards = torch.zeros(mask.shape, device=mask.device)
    by_prompt: dict[int, list[Tensor]] = defaultdict(list)
    for b in range(len(mask)):
        for s in range(credit.shape[1]):
            here = mask[b] & (segments[b] == s)
            token_rewards[b][here] = (rewards[b] * credit[:, s]).sum()
        by_prompt[int(group_ids[b])].append(token_rewards[b][mask[b]])
    means, deviations = {}, {}
    for prompt, values in by_prompt.items():
        together = torch.cat(values)
        alone = len(values) == 1
        means[prompt] = torch.zeros(()) if alone else together.mean()
        deviations[prompt] = torch.ones(()) if alone else together.std()
    advantages = torch.zeros_like(token_rewards)
    for b in range(len(mask)):
        prompt = int(group_ids[b])
        advantages[b] = (token_rewards[b] - means[prompt]) / (deviations[prompt] + 1e-6)
    return advantages * mask
