"""The pass over rows of logits in plain torch: for float64, and for devices that no kernel serves.

Chunks of rows bound the temporaries, so that no second tensor of the logits' size exists besides the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import PolicyOptions, RowOutputs, compute_dtype

# Elements of logits in flight at once: 16 MiB of float32, large enough to keep vector units busy, small beside a batch.
_CHUNK_ELEMENTS = 1 << 22


def policy_terms(
    logps: Tensor, advantages: Tensor, old_logps: Tensor | None, ref_logps: Tensor | None, options: PolicyOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, its derivative in ``logps``, k3 KL and clip flag of each token; all tensors of one shape.

    Without ``old_logps`` the ratio is exactly 1 (on-policy), also where ``logps`` is -inf.
    """
    ratio = torch.ones_like(logps) if old_logps is None else (logps - old_logps).exp()
    unclipped = ratio * advantages
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages
    clipped = bounded < unclipped
    loss = -torch.minimum(unclipped, bounded)
    derivative = torch.where(clipped, 0.0, -unclipped)
    if ref_logps is None:
        return loss, derivative, torch.zeros_like(logps), clipped
    delta = ref_logps - logps
    growth = torch.expm1(delta)
    # An infinite estimate, which the clamp bounds, would become inf - inf.
    kl = torch.where(torch.isposinf(growth), growth, growth - delta)
    outside = kl > options.kl_clamp
    kl = torch.where(outside, options.kl_clamp, kl)
    slope = -torch.where(outside, 0.0, growth)
    if options.unbiased_kl:
        # Inside the clamp kl - growth is -delta, which the subtraction would lose.
        kl, slope = ratio * kl, ratio * torch.where(outside, kl, -delta)
    if options.beta > 0:
        loss = loss + options.beta * kl
        derivative = derivative + options.beta * slope
    return loss, derivative, kl, clipped


def _chunks(mask: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows, columns = mask.nonzero(as_tuple=True)
    size = max(1, _CHUNK_ELEMENTS // max(vocab_size, 1))
    for start in range(0, rows.numel(), size):
        yield rows[start : start + size], columns[start : start + size]


def _scaled_logits(logits: Tensor, temperature: float) -> Tensor:
    scaled = logits.to(compute_dtype(logits))
    return scaled / temperature if temperature != 1.0 else scaled


def _entropy(log_probs: Tensor, probs: Tensor) -> Tensor:
    return -torch.where(probs == 0, 0.0, probs * log_probs).sum(-1)


def _pick(tensor: Tensor | None, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor[rows, columns].to(dtype)


def policy_rows(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: PolicyOptions,
    grad: Tensor | None,
) -> RowOutputs:
    """Token losses and, if ``grad`` is given, the gradient of their weighted sum in the logits.

    logits [B, T, V] any strides; token_ids int64, mask bool, advantages, weights, old_logps, ref_logps [B, T];
    grad [B, T, V], which may be ``logits`` itself, is overwritten: 0 on masked rows.
    """
    dtype = compute_dtype(logits)
    outputs = RowOutputs(*(torch.zeros(mask.shape, dtype=dtype, device=logits.device) for _ in range(5)))
    for rows, columns in _chunks(mask, logits.shape[-1]):
        ids = token_ids[rows, columns].unsqueeze(-1)
        log_probs = _scaled_logits(logits[rows, columns], options.temperature).log_softmax(-1)
        probs = log_probs.exp()
        logps = log_probs.gather(-1, ids).squeeze(-1)
        loss, derivative, kl, clipped = policy_terms(
            logps,
            advantages[rows, columns].to(dtype),
            _pick(old_logps, rows, columns, dtype),
            _pick(ref_logps, rows, columns, dtype),
            options,
        )
        values = (loss, logps, _entropy(log_probs, probs), kl, clipped.to(dtype))
        for output, value in zip(outputs, values, strict=True):
            output[rows, columns] = value
        if grad is not None:
            slope = derivative * weights[rows, columns].to(dtype) / options.temperature
            chunk_grad = probs.mul_(-slope.unsqueeze(-1))
            chunk_grad.scatter_add_(-1, ids, slope.unsqueeze(-1))
            grad[rows, columns] = chunk_grad.to(grad.dtype)
    if grad is not None:
        grad.masked_fill_(~mask.unsqueeze(-1), 0.0)
    return outputs


def logp_rows(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability [B, T], entropy [B, T] and normaliser [B, T, 2] of each token, 0 where the mask is False.

    The normaliser holds the largest scaled logit m and ``log(sum(exp(z - m)))``: their sum, the log-sum-exp, would lose
    the second number's digits under large logits.
    """
    dtype = compute_dtype(logits)
    logps, entropy = (torch.zeros(mask.shape, dtype=dtype, device=logits.device) for _ in range(2))
    normaliser = torch.zeros((*mask.shape, 2), dtype=dtype, device=logits.device)
    for rows, columns in _chunks(mask, logits.shape[-1]):
        scaled = _scaled_logits(logits[rows, columns], temperature)
        largest = scaled.amax(-1, keepdim=True)
        shifted = scaled - largest
        log_sum = shifted.exp().sum(-1, keepdim=True).log()
        log_probs = shifted - log_sum
        logps[rows, columns] = log_probs.gather(-1, token_ids[rows, columns].unsqueeze(-1)).squeeze(-1)
        entropy[rows, columns] = _entropy(log_probs, log_probs.exp())
        normaliser[rows, columns] = torch.cat([largest, log_sum], dim=-1)
    return logps, entropy, normaliser


def logp_rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    temperature: float,
    grad: Tensor,
) -> None:
    """Write the gradient of ``logp_rows`` into ``grad`` [B, T, V], which may be ``logits`` itself.

    With z = logits / temperature, d logp / d z_i = [i == token] - p_i and d entropy / d z_i = -p_i (log p_i + entropy).
    """
    dtype = compute_dtype(logits)
    for rows, columns in _chunks(mask, logits.shape[-1]):
        largest, log_sum = normaliser[rows, columns].split(1, dim=-1)
        log_probs = _scaled_logits(logits[rows, columns], temperature) - largest - log_sum
        probs = log_probs.exp()
        slope = (grad_logps[rows, columns].to(dtype) / temperature).unsqueeze(-1)
        chunk_grad = -slope * probs
        if grad_entropy is not None:
            entropy_slope = (grad_entropy[rows, columns].to(dtype) / temperature).unsqueeze(-1)
            spread = probs * (log_probs + entropy[rows, columns].unsqueeze(-1))
            chunk_grad -= entropy_slope * torch.where(probs == 0, 0.0, spread)
        chunk_grad.scatter_add_(-1, token_ids[rows, columns].unsqueeze(-1), slope)
        grad[rows, columns] = chunk_grad.to(grad.dtype)
    grad.masked_fill_(~mask.unsqueeze(-1), 0.0)
