"""The pass over rows of logits in plain torch: for float64, and for devices that no kernel serves.

Chunks of rows bound the temporaries, so that no second tensor of the logits' size exists besides the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import (
    LogpOutputs,
    LogpSlopes,
    LogpStatistics,
    PolicyOptions,
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


def policy_rows(logits: Tensor, tensors: PolicyTensors, options: PolicyOptions, grad: Tensor | None) -> RowOutputs:
    """As rows.policy_rows."""
    dtype, mask = compute_dtype(logits), tensors.mask
    outputs = RowOutputs.zeros(mask.shape, logits)
    for rows, columns in _chunks(mask, logits.shape[-1]):
        token = tensors.at((rows, columns))
        ids = token.token_ids.unsqueeze(-1)
        log_probs, _, _ = _log_softmax(logits[rows, columns], options.temperature)
        probs = log_probs.exp()
        logps = log_probs.gather(-1, ids).squeeze(-1)
        log_ratio = None if token.old_logps is None else logps - token.old_logps.to(dtype)
        terms = policy_terms(logps, log_ratio, token.advantages, token.ref_logps, options)
        values = (terms.loss, logps, _entropy(log_probs, probs), terms.kl, terms.clipped)
        for output, value in zip(outputs, values, strict=True):
            output[rows, columns] = value
        if grad is not None:
            slope = (terms.slope * token.weights / options.temperature).unsqueeze(-1)
            chunk_grad = probs.mul_(-slope).scatter_add_(-1, ids, slope)
            grad[rows, columns] = chunk_grad.masked_fill_(slope == 0, 0.0).to(grad.dtype)
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
    for rows, columns in _chunks(mask, logits.shape[-1]):
        largest, log_sum = saved.normaliser[rows, columns].split(1, dim=-1)
        log_probs = (logits[rows, columns].to(dtype) - largest) / temperature - log_sum
        probs = log_probs.exp()
        slope = (slopes.logps[rows, columns].to(dtype) / temperature).unsqueeze(-1)
        nothing = slope == 0
        chunk_grad = -slope * probs
        if slopes.entropy is not None:
            entropy_slope = (slopes.entropy[rows, columns].to(dtype) / temperature).unsqueeze(-1)
            spread = probs * (log_probs + saved.entropy[rows, columns].unsqueeze(-1))
            chunk_grad -= entropy_slope * torch.where(probs == 0, 0.0, spread)
            nothing &= entropy_slope == 0
        chunk_grad.scatter_add_(-1, token_ids[rows, columns].unsqueeze(-1), slope)
        grad[rows, columns] = chunk_grad.masked_fill_(nothing, 0.0).to(grad.dtype)
    grad.masked_fill_(~mask.unsqueeze(-1), 0.0)
