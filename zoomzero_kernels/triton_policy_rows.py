"""The pass over rows of logits as Triton kernels: one program a token.

Problem: for each valid token, log-sum-exp and entropy of its row of V logits, the terms of the clipped policy loss and
the gradient of the logits. Parallelisation: one program a row, which loops over the row twice. Memory traffic: the
first loop reads the row from DRAM, the second finds it in the L2 cache (a bfloat16 row of 152k logits is 300 kB) and
writes the gradient, so DRAM sees one read and one write. Masked rows are only written, with zeros; rows without
gradient are read once.

Note [Lengths]: B, T, V, strides and flags are run-time arguments that are not specialised, so a new length never
compiles. What vector loads need, that all of them are multiples of 16 elements, is one compile-time flag; the others
are the same for all threads and cost nothing beside a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoomzero_kernels.grpo_options import PolicyOptions, RowOutputs

# Note [One program an SM]: the second read of a row hits the L2 cache only if the rows in flight fit it. 1,024 threads
# of more than 32 registers fill an SM with one program: 132 rows of 300 kB on an H100, in a cache of 50 MB. Eight
# logits a thread keep the running sums in registers on sm_80, 90 and 100.
_BLOCK = 8192
_LOGITS_OF_THREAD = 8
_POLICY_LENGTHS = (
    "stride_sequence", "stride_token", "grad_stride_sequence", "grad_stride_token", "num_tokens", "vocab_size",
    "has_old", "has_ref", "with_grad",
)  # fmt: skip
_LOGP_LENGTHS = ("stride_sequence", "stride_token", "num_tokens", "vocab_size")
_BACKWARD_LENGTHS = (*_POLICY_LENGTHS[:6], "has_grad_entropy")


@triton.jit
def _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED: tl.constexpr):
    """Elements from the first logit to those of this row."""
    if ALIGNED:
        stride_sequence = tl.multiple_of(stride_sequence, 16)
        stride_token = tl.multiple_of(stride_token, 16)
    return (row // num_tokens) * stride_sequence + (row % num_tokens) * stride_token


@triton.jit
def _load_scaled(row_ptr, start, vocab_size, inv_temperature, BLOCK: tl.constexpr):
    """Offsets and scaled logits of one block, -inf beyond the row."""
    offsets = start + tl.arange(0, BLOCK)
    logits = tl.load(row_ptr + offsets, mask=offsets < vocab_size, other=-float("inf")).to(tl.float32)
    return offsets, logits * inv_temperature


@triton.jit
def _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK: tl.constexpr):
    """Largest scaled logit, log of the sum of exp(z - largest), and entropy.

    largest + log_sum would lose the second's digits under large logits, so they stay apart. sums and weighted hold
    exp(z - largest) and exp(z - largest) * (z - largest) lane by lane; they are rescaled when the maximum rises.
    """
    largest = -float("inf")
    sums = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        _, z = _load_scaled(row_ptr, start, vocab_size, inv_temperature, BLOCK)
        risen = tl.maximum(largest, tl.max(z, 0))
        # While only -inf has been seen the sums are 0, and any finite reference keeps them so.
        reference = tl.where(risen == -float("inf"), 0.0, risen)
        shift = tl.where(largest == -float("inf"), 0.0, largest - reference)
        factor = tl.exp(shift)
        difference = z - reference
        power = tl.exp(difference)
        weighted = factor * (weighted + sums * shift) + power * tl.maximum(difference, -100.0)
        sums = sums * factor + power
        largest = risen
    total = tl.sum(sums, 0)
    log_sum = tl.log(total)
    return largest, log_sum, log_sum - tl.sum(weighted, 0) / total


@triton.jit
def _clear_row(grad_ptr, vocab_size, BLOCK: tl.constexpr):
    for start in range(0, vocab_size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(grad_ptr + offsets, tl.zeros([BLOCK], grad_ptr.dtype.element_ty), mask=offsets < vocab_size)


@triton.jit
def _write_gradient(
    row_ptr, grad_ptr, vocab_size, inv_temperature, largest, log_sum, entropy, token, slope, entropy_slope,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of slope * logp[token] + entropy_slope * entropy; grad_ptr may be row_ptr."""
    for start in range(0, vocab_size, BLOCK):
        offsets, z = _load_scaled(row_ptr, start, vocab_size, inv_temperature, BLOCK)
        log_prob = (z - largest) - log_sum
        power = tl.exp(log_prob)
        grad = slope * (tl.where(offsets == token, 1.0, 0.0) - power)
        grad -= entropy_slope * power * (tl.maximum(log_prob, -100.0) + entropy)
        grad = (grad * inv_temperature).to(grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + offsets, grad, mask=offsets < vocab_size)


@triton.jit
def _k3(delta):
    """exp(delta) - delta - 1, by its series where the subtraction would cancel, inf where exp(delta) is."""
    series = delta * delta * (0.5 + delta * (1.0 / 6 + delta * (1.0 / 24 + delta * (1.0 / 120))))
    growth = tl.exp(delta)
    return tl.where(tl.abs(delta) < 0.1, series, tl.where(growth == float("inf"), growth, growth - delta - 1.0))


@triton.jit(do_not_specialize=_POLICY_LENGTHS)
def policy_rows_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, advantages_ptr, weights_ptr, old_logps_ptr, ref_logps_ptr,
    loss_ptr, logps_ptr, entropy_ptr, kl_ptr, clipped_ptr, grad_ptr,
    stride_sequence, stride_token, grad_stride_sequence, grad_stride_token, num_tokens, vocab_size,
    inv_temperature, beta, clip_low, clip_high, kl_clamp, has_old, has_ref, with_grad,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All of the policy loss for one row; outputs [B, T] float32 are zeroed by the caller."""
    row = tl.program_id(0).to(tl.int64)
    if ALIGNED:
        vocab_size = tl.multiple_of(vocab_size, 16)
    grad_row = grad_ptr + _row_offset(row, num_tokens, grad_stride_sequence, grad_stride_token, ALIGNED)
    if tl.load(mask_ptr + row) == 0:
        if with_grad != 0:
            _clear_row(grad_row, vocab_size, BLOCK)
        return
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    token = tl.load(token_ids_ptr + row)
    largest, log_sum, entropy = _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK)
    logp = tl.load(row_ptr + token).to(tl.float32) * inv_temperature - largest - log_sum
    advantage = tl.load(advantages_ptr + row)
    # Without old_logps the ratio is exactly 1, also where logp is -inf.
    log_ratio = logp - tl.load(old_logps_ptr + row, mask=has_old != 0, other=0.0)
    ratio = tl.where(has_old != 0, tl.exp(log_ratio), 1.0)
    unclipped = ratio * advantage
    low = 1.0 - clip_low
    high = 1.0 + clip_high
    bounded = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio)) * advantage
    is_clipped = bounded < unclipped
    loss = -tl.where(is_clipped, bounded, unclipped)
    slope = tl.where(is_clipped, 0.0, -unclipped)
    if has_ref != 0:
        delta = tl.load(ref_logps_ptr + row) - logp
        estimate = _k3(delta)
        outside = estimate > kl_clamp
        kl = tl.where(outside, kl_clamp, estimate)
        tl.store(kl_ptr + row, kl)
        if beta > 0.0:
            loss += beta * kl
            slope -= tl.where(outside, 0.0, beta * (estimate + delta))
    tl.store(loss_ptr + row, loss)
    tl.store(logps_ptr + row, logp)
    tl.store(entropy_ptr + row, entropy)
    tl.store(clipped_ptr + row, is_clipped.to(tl.float32))
    if with_grad != 0:
        slope *= tl.load(weights_ptr + row)
        # The token's logit was read above by every thread; its row may now be overwritten.
        tl.debug_barrier()
        if slope == 0.0:
            _clear_row(grad_row, vocab_size, BLOCK)
        else:
            _write_gradient(
                row_ptr, grad_row, vocab_size, inv_temperature, largest, log_sum, entropy, token, slope, 0.0, BLOCK
            )  # fmt: skip


@triton.jit(do_not_specialize=_LOGP_LENGTHS)
def logp_rows_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, logps_ptr, entropy_ptr, normaliser_ptr,
    stride_sequence, stride_token, num_tokens, vocab_size, inv_temperature, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Log-probability, entropy and normaliser (largest, log_sum) of one row; outputs are zeroed by the caller."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(mask_ptr + row) == 0:
        return
    if ALIGNED:
        vocab_size = tl.multiple_of(vocab_size, 16)
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    largest, log_sum, entropy = _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK)
    logit = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    tl.store(logps_ptr + row, logit * inv_temperature - largest - log_sum)
    tl.store(entropy_ptr + row, entropy)
    tl.store(normaliser_ptr + 2 * row, largest)
    tl.store(normaliser_ptr + 2 * row + 1, log_sum)


@triton.jit(do_not_specialize=_BACKWARD_LENGTHS)
def logp_rows_backward_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, entropy_ptr, normaliser_ptr, grad_logps_ptr, grad_entropy_ptr, grad_ptr,
    stride_sequence, stride_token, grad_stride_sequence, grad_stride_token, num_tokens, vocab_size, inv_temperature,
    has_grad_entropy, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one row of logp_rows_kernel; the logits may be overwritten by it."""
    row = tl.program_id(0).to(tl.int64)
    if ALIGNED:
        vocab_size = tl.multiple_of(vocab_size, 16)
    grad_row = grad_ptr + _row_offset(row, num_tokens, grad_stride_sequence, grad_stride_token, ALIGNED)
    if tl.load(mask_ptr + row) == 0:
        _clear_row(grad_row, vocab_size, BLOCK)
        return
    entropy_slope = tl.load(grad_entropy_ptr + row, mask=has_grad_entropy != 0, other=0.0)
    _write_gradient(
        logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED),
        grad_row, vocab_size, inv_temperature,
        tl.load(normaliser_ptr + 2 * row), tl.load(normaliser_ptr + 2 * row + 1), tl.load(entropy_ptr + row),
        tl.load(token_ids_ptr + row), tl.load(grad_logps_ptr + row), entropy_slope, BLOCK,
    )  # fmt: skip


def block_size(vocab_size: int) -> int:
    """Logits a program handles at a time."""
    return min(_BLOCK, max(triton.next_power_of_2(vocab_size), 16))


def num_warps(block: int) -> int:
    """Warps of a program that handles so many logits at a time; see Note [One program an SM]."""
    return max(1, block // (32 * _LOGITS_OF_THREAD))


def _is_aligned(*tensors: Tensor | None) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    sizes = [size for tensor in given for size in (*tensor.stride()[:2], tensor.shape[2])]
    return all(size % 16 == 0 for size in sizes) and all(tensor.data_ptr() % 16 == 0 for tensor in given)


def policy_rows(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    options: PolicyOptions,
    outputs: RowOutputs,
    grad: Tensor | None,
) -> None:
    """Launch policy_rows_kernel; logits and grad [B, T, V] with unit stride in V, the others contiguous [B, T]."""
    target = logits if grad is None else grad
    if mask.numel() == 0:
        return
    block = block_size(logits.shape[2])
    policy_rows_kernel[(mask.numel(),)](
        logits,
        token_ids,
        mask.view(torch.uint8),
        advantages,
        weights,
        advantages if old_logps is None else old_logps,
        advantages if ref_logps is None else ref_logps,
        *outputs,
        target,
        *logits.stride()[:2],
        *target.stride()[:2],
        mask.shape[1],
        logits.shape[2],
        1.0 / options.temperature,
        options.beta,
        options.clip_low,
        options.clip_high,
        options.kl_clamp,
        int(old_logps is not None),
        int(ref_logps is not None),
        int(grad is not None),
        ALIGNED=_is_aligned(logits, grad),
        BLOCK=block,
        num_warps=num_warps(block),
    )


def logp_rows(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    logps: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
) -> None:
    """Launch logp_rows_kernel; logits [B, T, V] with unit stride in V, the others contiguous."""
    if mask.numel() == 0:
        return
    block = block_size(logits.shape[2])
    logp_rows_kernel[(mask.numel(),)](
        logits,
        token_ids,
        mask.view(torch.uint8),
        logps,
        entropy,
        normaliser,
        *logits.stride()[:2],
        mask.shape[1],
        logits.shape[2],
        1.0 / temperature,
        ALIGNED=_is_aligned(logits),
        BLOCK=block,
        num_warps=num_warps(block),
    )


def logp_rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    grad: Tensor,
) -> None:
    """Launch logp_rows_backward_kernel; logits and grad with unit stride in V, the others contiguous."""
    if mask.numel() == 0:
        return
    block = block_size(logits.shape[2])
    logp_rows_backward_kernel[(mask.numel(),)](
        logits,
        token_ids,
        mask.view(torch.uint8),
        entropy,
        normaliser,
        grad_logps,
        grad_logps if grad_entropy is None else grad_entropy,
        grad,
        *logits.stride()[:2],
        *grad.stride()[:2],
        mask.shape[1],
        logits.shape[2],
        1.0 / temperature,
        int(grad_entropy is not None),
        ALIGNED=_is_aligned(logits, grad),
        BLOCK=block,
        num_warps=num_warps(block),
    )
