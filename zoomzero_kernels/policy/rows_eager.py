"""The pass over rows of logits in plain torch: for float64, and for devices that no kernel serves.

Chunks of rows bound the temporaries, so that no second tensor of the logits' size exists besides the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoomzero_kernels.policy.objectives import PolicyOptions
from zoomzero_kernels.policy.tensors import (
    LogpOutputs,
    LogpSlopes,
    LogpStatistics,
    PolicyTensors,
    RowOutputs,
    compute_dtype,
)
from zoomzero_kernels.policy.terms import policy_terms

# Elements of logits in flight at once: 16 MiB of float32, large enough to keep vector units busy, small beside a batch.
_CHUNK_ELEMENTS = 1 << 22


def _chunks(mask: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows, columns = mask.nonzero(as_tuple=True)
    size = max(1, _CHUNK_ELEMENTS // max(vocab_size, 1))
    for start in range(0, rows.numel(), size):
        yield rows[start : start + size], columns[start : start + size]


def _log_softmax(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of rows, their largest logits and log-sums; see Note [Scaled alike] in rows.py."""
    wide = logits.to(compute_dtype(logits))
    largest = wide.amax(-1, keepdim=True)
    shifted = (wide - largest) / temperature
    log_sum = shifted.exp().sum(-1, keepdim=True).log()
    return shifted.sub_(log_sum), largest, log_sum


def _entropy(log_probs: Tensor, probs: Tensor) -> Tensor:
    return -torch.where(probs == 0, 0.0, probs * log_probs).sum(-1)


def _gradient(log_probs: Tensor, ids: Tensor, slope: Tensor, entropy_slope: Tensor | None, entropy: Tensor) -> Tensor:
    """Gradient [n, V] of slope * logp[id] + entropy_slope * entropy in scaled logits; slopes, entropy and ids [n]."""
    probs, slope = log_probs.exp(), slope.unsqueeze(-1)
    nothing = slope == 0
    grad = -slope * probs
    if entropy_slope is not None:
        nothing = nothing & (entropy_slope == 0).unsqueeze(-1)
        spread = probs * (log_probs + entropy.unsqueeze(-1))
        grad -= entropy_slope.unsqueeze(-1) * torch.where(probs == 0, 0.0, spread)
    return grad.scatter_add_(-1, ids.unsqueeze(-1), slope).masked_fill_(nothing, 0.0)


def policy_rows(logits: Tensor, tensors: PolicyTensors, options: PolicyOptions, grad: Tensor | None) -> RowOutputs:
    """As rows.policy_rows."""
    dtype, mask = compute_dtype(logits), tensors.mask
    outputs = RowOutputs.zeros(mask.shape, logits)
    for rows, columns in _chunks(mask, logits.shape[-1]):
        tokens = tensors.at((rows, columns))
        log_probs, _, _ = _log_softmax(logits[rows, columns], options.temperature)
        logps = log_probs.gather(-1, tokens.token_ids.unsqueeze(-1)).squeeze(-1)
        log_ratio = None if tokens.old_logps is None else logps - tokens.old_logps.to(dtype)
        terms = policy_terms(logps, log_ratio, tokens, options)
        entropy = _entropy(log_probs, log_probs.exp())
        for output, value in zip(outputs, (terms.loss, logps, entropy, terms.kl, terms.clipped), strict=True):
            output[rows, columns] = value
        if grad is not None:
            slope, bonus = terms.slope * tokens.weights / options.temperature, tokens.entropy_weights
            entropy_slope = None if bonus is None else -bonus.to(dtype) / options.temperature
            grad[rows, columns] = _gradient(log_probs, tokens.token_ids, slope, entropy_slope, entropy).to(grad.dtype)
    if grad is not None:
        grad.masked_fill_(~mask.unsqueeze(-1), 0.0)
    return outputs


def logp_rows(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> LogpOutputs:
    """As rows.logp_rows."""
    outputs = LogpOutputs.zeros(mask.shape, logits)
    for rows, columns in _chunks(mask, logits.shape[-1]):
        log_probs, largest, log_sum = _log_softmax(logits[rows, columns], temperature)
        outputs.logps[rows, columns] = log_probs.gather(-1, token_ids[rows, columns].unsqueeze(-1)).squeeze(-1)
        outputs.entropy[rows, columns] = _entropy(log_probs, log_probs.exp())
        outputs.normaliser[rows, columns] = torch.cat([largest, log_sum], dim=-1)
    return outputs


def logp_rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    saved: LogpStatistics,
    slopes: LogpSlopes,
    temperature: float,
    grad: Tensor,
) -> None:
    """As rows.logp_rows_backward."""
    dtype = compute_dtype(logits)
    for at in _chunks(mask, logits.shape[-1]):
        largest, log_sum = saved.normaliser[at].split(1, dim=-1)
        log_probs = (logits[at].to(dtype) - largest) / temperature - log_sum
        slope = slopes.logps[at].to(dtype) / temperature
        entropy_slope = None if slopes.entropy is None else slopes.entropy[at].to(dtype) / temperature
        grad[at] = _gradient(log_probs, token_ids[at], slope, entropy_slope, saved.entropy[at]).to(grad.dtype)
    grad.masked_fill_(~mask.unsqueeze(-1), 0.0)
