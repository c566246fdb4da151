"""The pass over rows of logits as Triton kernels: one program a token. Launched by policy_rows_launch.py.

Problem: for each valid token, log-sum-exp and entropy of its row of V logits, the terms of the clipped policy loss and
the gradient of the logits. Parallelisation: one program a row, which loops over the row twice. Memory traffic: the
first loop reads the row from DRAM, the second finds it in the L2 cache (a bfloat16 row of 152k logits is 300 kB) and
writes the gradient, so DRAM sees one read and one write. Masked rows are only written, with zeros; rows without
gradient are read once.

Note [Lengths]: B, T, V, strides and flags are run-time arguments of fixed types that are not specialised, so a new
length never compiles. What loads of 16 bytes need, that strides and V are multiples of 16 elements, is one compile-time
flag.

The build compiles this file on its own (see variants.py): it imports Triton only.
"""

import triton
import triton.language as tl

_FLAGS = ("has_old", "has_ref", "with_grad")
_LENGTHS = (
    "stride_sequence", "stride_token", "grad_stride_sequence", "grad_stride_token", "num_tokens", "vocab_size",
)  # fmt: skip
# Single values are read through these, so their alignment is nobody's business.
_TOKEN_POINTERS = (
    "token_ids_ptr", "mask_ptr", "advantages_ptr", "weights_ptr", "old_logps_ptr", "ref_logps_ptr", "loss_ptr",
    "logps_ptr", "entropy_ptr", "kl_ptr", "clipped_ptr",
)  # fmt: skip
_LOGP_LENGTHS = ("stride_sequence", "stride_token", "num_tokens", "vocab_size")
_LOGP_POINTERS = ("token_ids_ptr", "mask_ptr", "logps_ptr", "entropy_ptr", "normaliser_ptr")
_BACKWARD_POINTERS = (
    "token_ids_ptr", "mask_ptr", "entropy_ptr", "normaliser_ptr", "grad_logps_ptr", "grad_entropy_ptr",
)  # fmt: skip
# Lowest and largest float32: in place of -inf, where a difference of two infinities would be NaN, and of inf, where a
# product with 0 would be.
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _shown_multiple(value, ALIGNED: tl.constexpr):
    """The value; if ALIGNED in a form from which the compiler sees that it is a multiple of 16."""
    return value // 16 * 16 if ALIGNED else value


@triton.jit
def _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED: tl.constexpr):
    """Elements from the first logit to those of this row."""
    sequence = (row // num_tokens) * _shown_multiple(stride_sequence, ALIGNED)
    return sequence + (row % num_tokens) * _shown_multiple(stride_token, ALIGNED)


@triton.jit
def _load_block(row_ptr, start, vocab_size, BLOCK: tl.constexpr):
    """Offsets and logits of one block, -inf beyond the row."""
    offsets = start + tl.arange(0, BLOCK)
    return offsets, tl.load(row_ptr + offsets, mask=offsets < vocab_size, other=-float("inf")).to(tl.float32)


@triton.jit
def _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK: tl.constexpr):
    """Largest logit, log of the sum of exp((logit - largest) / temperature), and entropy.

    See Note [Scaled alike] in policy/rows.py. As one number the first two would lose the second's digits under large
    logits, so they stay apart. Every lane of a block keeps its own maximum, sum of exp(z - maximum) and sum of
    exp(z - maximum) * (z - maximum), and rescales them when its maximum rises: lanes meet once, after the row, so that
    no thread waits for another between two loads. Exponents are powers of two, which saves a product a logit.
    """
    scale = inv_temperature * _LOG2_E
    maxima = tl.zeros([BLOCK], tl.float32) + _LOWEST
    sums = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        _, logits = _load_block(row_ptr, start, vocab_size, BLOCK)
        risen = tl.maximum(maxima, logits)
        sums, weighted = _rescaled(sums, weighted, (maxima - risen) * scale)
        exponent = (logits - risen) * scale
        power = tl.exp2(exponent)
        sums += power
        weighted += power * tl.maximum(exponent, -150.0)
        maxima = risen
    largest = tl.max(maxima, 0)
    sums, weighted = _rescaled(sums, weighted, (maxima - largest) * scale)
    total = tl.sum(sums, 0)
    # The largest logit's own share is 1; a row of -inf has none, and its distribution is not defined.
    log_sum = tl.where(total > 1.0, tl.maximum(tl.log(total), 0.0), tl.where(total == 1.0, 0.0, float("nan")))
    return largest, log_sum, log_sum - tl.sum(weighted, 0) * _LN_2 / total


@triton.jit
def _rescaled(sums, weighted, shift):
    """Both sums relative to a maximum that lies -shift higher."""
    shift = tl.maximum(shift, -1000.0)
    factor = tl.exp2(shift)
    return sums * factor, factor * (weighted + sums * shift)


@triton.jit
def _token_logp(row_ptr, token, vocab_size, inv_temperature, largest, log_sum):
    """Log-probability of the token. One outside the vocabulary gives NaN, where a read past the row would hide it."""
    inside = (token >= 0) & (token < vocab_size)
    logit = tl.load(row_ptr + token, mask=inside, other=float("nan")).to(tl.float32)
    return (logit - largest) * inv_temperature - log_sum


@triton.jit
def _clear_row(grad_ptr, vocab_size, BLOCK: tl.constexpr):
    for start in range(0, vocab_size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(grad_ptr + offsets, tl.zeros([BLOCK], grad_ptr.dtype.element_ty), mask=offsets < vocab_size)


@triton.jit
def _write_gradient(
    row_ptr, grad_ptr, vocab_size, inv_temperature, largest, log_sum, token, slope, entropy, entropy_slope,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of slope * logp[token] + entropy_slope * entropy (None: without it); grad_ptr may be row_ptr."""
    scale = inv_temperature * _LOG2_E
    log2_sum = log_sum * _LOG2_E
    slope *= inv_temperature
    for start in range(0, vocab_size, BLOCK):
        offsets, logits = _load_block(row_ptr, start, vocab_size, BLOCK)
        exponent = (logits - largest) * scale - log2_sum
        power = tl.exp2(exponent)
        grad = slope * (tl.where(offsets == token, 1.0, 0.0) - power)
        if entropy_slope is not None:
            log_prob = tl.maximum(exponent, -150.0) * _LN_2
            grad -= entropy_slope * inv_temperature * power * (log_prob + entropy)
        tl.store(grad_ptr + offsets, grad.to(grad_ptr.dtype.element_ty), mask=offsets < vocab_size)


@triton.jit
def _k3(delta):
    """exp(delta) - delta - 1, by its series where the subtraction would cancel, inf where exp(delta) is."""
    series = delta * delta * (0.5 + delta * (1.0 / 6 + delta * (1.0 / 24 + delta * (1.0 / 120))))
    growth = tl.exp(delta)
    return tl.where(tl.abs(delta) < 0.1, series, tl.where(growth == float("inf"), growth, growth - delta - 1.0))


@triton.jit
def _clip(ratio, advantage, clip_low, clip_high, delta):
    """Loss, slope and clip flag of one token; these three as in policy/terms.py."""
    low = 1.0 - clip_low
    high = 1.0 + clip_high
    capped = tl.where(ratio > delta, delta, ratio)
    unclipped = capped * advantage
    bounded = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio)) * advantage
    takes_bounded = bounded < unclipped
    # Where the ratio that counts stands at a bound, it does not follow the log-probability.
    fixed = tl.where(takes_bounded, (ratio < low) | (ratio > high), ratio > delta)
    too_low = (capped < low) & (advantage < 0.0)
    too_high = (capped > high) & (advantage > 0.0)
    loss = -tl.where(takes_bounded, bounded, unclipped)
    slope = tl.where(fixed, 0.0, -ratio * advantage)
    return loss, slope, too_high.to(tl.float32) - too_low.to(tl.float32)


@triton.jit
def _cispo(logp, ratio, advantage, clip_high):
    too_high = ratio > clip_high
    slope = -tl.where(too_high, clip_high, ratio) * advantage
    loss = tl.where(slope == 0.0, 0.0, slope * logp)
    return loss, slope, (too_high & (advantage > 0.0)).to(tl.float32)


@triton.jit
def _sapo(ratio, advantage, temperature_pos, temperature_neg):
    tau = tl.where(advantage > 0.0, temperature_pos, temperature_neg)
    distance = tau * (ratio - 1.0)
    gate = 1.0 / (1.0 + tl.exp(-distance))
    # 1 - gate without cancellation.
    slope = -4.0 * gate / (1.0 + tl.exp(distance)) * ratio * advantage
    return -4.0 * gate / tau * advantage, slope, 0.0 * ratio


@triton.jit
def _policy_term(
    logp, ratio, advantage, clip_low, clip_high, delta, objective, sapo_temperature_pos, sapo_temperature_neg
):  # fmt: skip
    loss, slope, clipped = _clip(ratio, advantage, clip_low, clip_high, delta)
    if objective == 1.0:
        loss, slope, clipped = _cispo(logp, ratio, advantage, clip_high)
    elif objective == 2.0:
        loss, slope, clipped = _sapo(ratio, advantage, sapo_temperature_pos, sapo_temperature_neg)
    # Without advantage there is no policy term, whatever the ratio.
    nothing = advantage == 0.0
    return tl.where(nothing, 0.0, loss), tl.where(nothing, 0.0, slope), clipped


@triton.jit(do_not_specialize=(*_LENGTHS, *_FLAGS), do_not_specialize_on_alignment=_TOKEN_POINTERS)
def policy_rows_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, advantages_ptr, weights_ptr, old_logps_ptr, ref_logps_ptr,
    loss_ptr, logps_ptr, entropy_ptr, kl_ptr, clipped_ptr, grad_ptr,
    stride_sequence: tl.int64, stride_token: tl.int64, grad_stride_sequence: tl.int64, grad_stride_token: tl.int64,
    num_tokens: tl.int32, vocab_size: tl.int32,
    inv_temperature: tl.float32, beta: tl.float32, clip_low: tl.float32, clip_high: tl.float32, kl_clamp: tl.float32,
    unbiased_kl: tl.float32, delta: tl.float32,
    objective: tl.float32, sapo_temperature_pos: tl.float32, sapo_temperature_neg: tl.float32,
    has_old: tl.int32, has_ref: tl.int32, with_grad: tl.int32,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All of the policy loss for one row; outputs [B, T] float32 are zeroed by the caller."""
    row = tl.program_id(0).to(tl.int64)
    vocab_size = _shown_multiple(vocab_size, ALIGNED)
    grad_row = grad_ptr + _row_offset(row, num_tokens, grad_stride_sequence, grad_stride_token, ALIGNED)
    if tl.load(mask_ptr + row) == 0:
        if with_grad != 0:
            _clear_row(grad_row, vocab_size, BLOCK)
        return
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    token = tl.load(token_ids_ptr + row)
    largest, log_sum, entropy = _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK)
    logp = _token_logp(row_ptr, token, vocab_size, inv_temperature, largest, log_sum)
    advantage = tl.load(advantages_ptr + row)
    # Without old_logps the ratio is exactly 1, also where logp is -inf. With them it is bounded; NaN stays NaN.
    log_ratio = logp - tl.load(old_logps_ptr + row, mask=has_old != 0, other=0.0)
    ratio = tl.where(has_old != 0, tl.exp(log_ratio), 1.0)
    ratio = tl.where(ratio > _LARGEST, _LARGEST, ratio)
    loss, slope, clipped = _policy_term(
        logp, ratio, advantage, clip_low, clip_high, delta, objective, sapo_temperature_pos, sapo_temperature_neg
    )
    if has_ref != 0:
        delta = tl.load(ref_logps_ptr + row) - logp
        estimate = _k3(delta)
        outside = estimate > kl_clamp
        kl = tl.where(outside, kl_clamp, estimate)
        kl_slope = tl.where(outside, 0.0, -(estimate + delta))
        if unbiased_kl != 0.0:
            # Inside the clamp the estimate less exp(delta) - 1 is -delta, which the subtraction would lose.
            kl_slope = ratio * tl.where(outside, kl, -delta)
            kl *= ratio
        tl.store(kl_ptr + row, kl)
        if beta > 0.0:
            loss += beta * kl
            slope += beta * kl_slope
    tl.store(loss_ptr + row, loss)
    tl.store(logps_ptr + row, logp)
    tl.store(entropy_ptr + row, entropy)
    tl.store(clipped_ptr + row, clipped)
    if with_grad != 0:
        slope *= tl.load(weights_ptr + row)
        # The token's logit was read above by every thread; its row may now be overwritten.
        tl.debug_barrier()
        if slope == 0.0:
            _clear_row(grad_row, vocab_size, BLOCK)
        else:
            _write_gradient(
                row_ptr, grad_row, vocab_size, inv_temperature, largest, log_sum, token, slope, entropy, None, BLOCK
            )  # fmt: skip


@triton.jit(do_not_specialize=_LOGP_LENGTHS, do_not_specialize_on_alignment=_LOGP_POINTERS)
def logp_rows_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, logps_ptr, entropy_ptr, normaliser_ptr,
    stride_sequence: tl.int64, stride_token: tl.int64, num_tokens: tl.int32, vocab_size: tl.int32,
    inv_temperature: tl.float32, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Log-probability, entropy and normaliser (largest, log_sum) of one row; outputs are zeroed by the caller."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(mask_ptr + row) == 0:
        return
    vocab_size = _shown_multiple(vocab_size, ALIGNED)
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    largest, log_sum, entropy = _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK)
    token = tl.load(token_ids_ptr + row)
    tl.store(logps_ptr + row, _token_logp(row_ptr, token, vocab_size, inv_temperature, largest, log_sum))
    tl.store(entropy_ptr + row, entropy)
    tl.store(normaliser_ptr + 2 * row, largest)
    tl.store(normaliser_ptr + 2 * row + 1, log_sum)


@triton.jit(do_not_specialize=(*_LENGTHS, "has_grad_entropy"), do_not_specialize_on_alignment=_BACKWARD_POINTERS)
def logp_rows_backward_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, entropy_ptr, normaliser_ptr, grad_logps_ptr, grad_entropy_ptr, grad_ptr,
    stride_sequence: tl.int64, stride_token: tl.int64, grad_stride_sequence: tl.int64, grad_stride_token: tl.int64,
    num_tokens: tl.int32, vocab_size: tl.int32, inv_temperature: tl.float32, has_grad_entropy: tl.int32,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one row of logp_rows_kernel; the logits may be overwritten by it."""
    row = tl.program_id(0).to(tl.int64)
    vocab_size = _shown_multiple(vocab_size, ALIGNED)
    grad_row = grad_ptr + _row_offset(row, num_tokens, grad_stride_sequence, grad_stride_token, ALIGNED)
    slope = tl.load(grad_logps_ptr + row)
    entropy_slope = tl.load(grad_entropy_ptr + row, mask=has_grad_entropy != 0, other=0.0)
    if (tl.load(mask_ptr + row) == 0) | ((slope == 0.0) & (entropy_slope == 0.0)):
        _clear_row(grad_row, vocab_size, BLOCK)
        return
    _write_gradient(
        logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED),
        grad_row, vocab_size, inv_temperature,
        tl.load(normaliser_ptr + 2 * row), tl.load(normaliser_ptr + 2 * row + 1),
        tl.load(token_ids_ptr + row), slope, tl.load(entropy_ptr + row), entropy_slope, BLOCK,
    )  # fmt: skip
