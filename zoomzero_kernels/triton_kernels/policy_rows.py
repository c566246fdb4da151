"""The pass over rows of logits as Triton kernels: one program a token. Launched by policy_rows_launch.py.

Problem: for each valid token, log-sum-exp and entropy of its row of V logits, the terms of the clipped policy loss and
the gradient of the logits. Parallelisation: one program a row, which loops over the row twice. Memory traffic: the
first loop reads the row from DRAM, the second finds it in the L2 cache (a bfloat16 row of 152k logits is 300 kB) and
writes the gradient, so DRAM sees one read and one write; rows of float32 in flight exceed the cache and are read twice
from DRAM. Masked rows are only written, with zeros; rows without gradient are read once.

Note [Instructions]: at 3 TB/s an H100 has 39 issue slots a 16-bit logit for both loops, so instructions matter as much
as bytes. _PER_THREAD logits of a thread share one running maximum, and so one rescaling of the sums a turn; TOGETHER of
them lie side by side, as many as one 16-byte load brings, and the axes around them are the thread's other loads.
Exponents are powers of two; the cache is told to keep what will be read again and to drop what will not; the term of
the entropy's gradient has a loop of its own; the token's own gradient is written once, after the loop.

Note [Lengths]: B, T, V, strides and flags are run-time arguments of fixed types that are not specialised, so a new
length never compiles. What loads of 16 bytes need, that strides and V are multiples of 16 elements, is one compile-time
flag.

The build compiles this file on its own (see variants.py): it imports Triton only.
"""

import triton
import triton.language as tl

_FLAGS = ("has_old", "has_ref", "has_factors", "has_entropy_weights", "with_grad")
_LENGTHS = (
    "stride_sequence", "stride_token", "grad_stride_sequence", "grad_stride_token", "num_tokens", "vocab_size",
)  # fmt: skip
# Single values are read through these, so their alignment is nobody's business.
_TOKEN_POINTERS = (
    "token_ids_ptr", "mask_ptr", "advantages_ptr", "weights_ptr", "old_logps_ptr", "ref_logps_ptr", "factors_ptr",
    "entropy_weights_ptr", "loss_ptr", "logps_ptr", "entropy_ptr", "kl_ptr", "clipped_ptr",
)  # fmt: skip
_LOGP_LENGTHS = ("stride_sequence", "stride_token", "num_tokens", "vocab_size")
_SCALE_LENGTHS = ("stride_sequence", "stride_token", "num_rows", "num_tokens", "vocab_size")
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
# Logits of a thread in a turn of the loops.
_PER_THREAD = tl.constexpr(8)


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
def _load_block(row_ptr, start, vocab_size, BLOCK: tl.constexpr, KEEP: tl.constexpr):
    """Offsets and logits of one block, -inf beyond the row; KEEP: what the cache is told of them."""
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < vocab_size
    return offsets, tl.load(row_ptr + offsets, mask=inside, other=-float("inf"), eviction_policy=KEEP).to(tl.float32)


@triton.jit
def _row_statistics(
    row_ptr, vocab_size, inv_temperature, BLOCK: tl.constexpr, TOGETHER: tl.constexpr, KEEP: tl.constexpr
):  # fmt: skip
    """Largest logit, sum of exp((logit - largest) / temperature), and entropy.

    See Note [Scaled alike] in policy/rows.py. Every thread keeps its own maximum, sum of exp(z - maximum) and sum of
    exp(z - maximum) * (z - maximum), and rescales them when its maximum rises: threads meet once, after the row, so
    that none waits for another between two loads.
    """
    scale = inv_temperature * _LOG2_E
    # Beyond this distance a power is 0, and any finite number will do in place of the distance, which may be inf.
    lowest = -150.0 / scale
    maxima = tl.zeros([BLOCK // _PER_THREAD], tl.float32) + _LOWEST
    sums = tl.zeros([BLOCK // _PER_THREAD], tl.float32)
    weighted = tl.zeros([BLOCK // _PER_THREAD], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        _, logits = _load_block(row_ptr, start, vocab_size, BLOCK, KEEP)
        logits = tl.reshape(logits, [_PER_THREAD // TOGETHER, BLOCK // _PER_THREAD, TOGETHER])
        risen = tl.maximum(maxima, tl.max(tl.max(logits, 2), 0))
        sums, weighted = _rescaled(sums, weighted, maxima - risen, scale, lowest)
        distance = logits - risen[None, :, None]
        power = tl.exp2(distance * scale)
        sums += tl.sum(tl.sum(power, 2), 0)
        weighted += tl.sum(tl.sum(power * tl.maximum(distance, lowest), 2), 0)
        maxima = risen
    largest = tl.max(maxima, 0)
    sums, weighted = _rescaled(sums, weighted, maxima - largest, scale, lowest)
    total = tl.sum(sums, 0)
    # The largest logit's own share is 1; a row of -inf has none, and its distribution is not defined.
    total = tl.where(total >= 1.0, total, float("nan"))
    entropy = tl.log(total) - tl.sum(weighted, 0) * inv_temperature / total
    return largest, total, entropy


@triton.jit
def _rescaled(sums, weighted, shift, scale, lowest):
    """Both sums relative to a maximum that lies -shift higher."""
    factor = tl.exp2(shift * scale)
    return sums * factor, factor * (weighted + sums * tl.maximum(shift, lowest))


@triton.jit
def _token_logit(row_ptr, token, vocab_size):
    """Logit of the token. One outside the vocabulary gives NaN, where a read past the row would hide it."""
    inside = (token >= 0) & (token < vocab_size)
    return tl.load(row_ptr + token, mask=inside, other=float("nan")).to(tl.float32)


@triton.jit
def _hold_registers(values_ptr, BLOCK: tl.constexpr):
    """Make the compiler give every thread more than 32 registers; never run. See Note [One program an SM].

    It needs 32 values of a thread until their maximum is known.
    """
    values = tl.load(values_ptr + tl.arange(0, 4 * BLOCK), volatile=True)
    tl.store(values_ptr, tl.sum(tl.exp(values - tl.max(values, 0)), 0))


@triton.jit
def _clear_row(grad_ptr, vocab_size, BLOCK: tl.constexpr):
    for start in range(0, vocab_size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(grad_ptr + offsets, tl.zeros([BLOCK], grad_ptr.dtype.element_ty), mask=offsets < vocab_size)


@triton.jit
def _write_gradient(
    row_ptr, grad_ptr, vocab_size, inv_temperature, largest, log_sum, token, logit, slope, entropy, entropy_slope,
    BLOCK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Gradient of slope * logp[token] + entropy_slope * entropy; logit: the token's; grad_ptr may be row_ptr."""
    scale = inv_temperature * _LOG2_E
    share = tl.exp(-log_sum)
    slope *= inv_temperature
    own = slope - slope * share * tl.exp2((logit - largest) * scale)
    # Every thread has read the token's logit; its row may now be overwritten.
    tl.debug_barrier()
    if entropy_slope == 0.0:
        factor = -slope * share
        for start in range(0, vocab_size, BLOCK):
            offsets, logits = _load_block(row_ptr, start, vocab_size, BLOCK, KEEP)
            grad = factor * tl.exp2((logits - largest) * scale)
            _store_block(grad_ptr, offsets, grad, vocab_size, KEEP)
    else:
        entropy_slope *= inv_temperature
        for start in range(0, vocab_size, BLOCK):
            offsets, logits = _load_block(row_ptr, start, vocab_size, BLOCK, KEEP)
            grad = _entropy_gradient(logits - largest, scale, log_sum, share, slope, entropy, entropy_slope)
            _store_block(grad_ptr, offsets, grad, vocab_size, KEEP)
        own += slope * share * tl.exp2((logit - largest) * scale)
        own += _entropy_gradient(logit - largest, scale, log_sum, share, slope, entropy, entropy_slope)
    # The token's own gradient, over what some thread wrote in its place.
    tl.debug_barrier()
    tl.store(grad_ptr + token, own.to(grad_ptr.dtype.element_ty), mask=(token >= 0) & (token < vocab_size))


@triton.jit
def _entropy_gradient(distance, scale, log_sum, share, slope, entropy, entropy_slope):
    exponent = distance * scale
    log_prob = tl.maximum(exponent, -150.0) * _LN_2 - log_sum
    return -share * tl.exp2(exponent) * (slope + entropy_slope * (log_prob + entropy))


@triton.jit
def _store_block(grad_ptr, offsets, grad, vocab_size, KEEP: tl.constexpr):
    grad = grad.to(grad_ptr.dtype.element_ty)
    tl.store(grad_ptr + offsets, grad, mask=offsets < vocab_size, eviction_policy=KEEP)


@triton.jit
def _k3(delta):
    """exp(delta) - delta - 1, by its series where the subtraction would cancel, inf where exp(delta) is."""
    series = delta * delta * (0.5 + delta * (1.0 / 6 + delta * (1.0 / 24 + delta * (1.0 / 120))))
    growth = tl.exp(delta)
    return tl.where(tl.abs(delta) < 0.1, series, tl.where(growth == float("inf"), growth, growth - delta - 1.0))


@triton.jit
def _bounded(value, low, high):
    return tl.where(value < low, low, tl.where(value > high, high, value))


@triton.jit
def _divergence(logp, log_ratio, objective):
    """How far the token's probability p has moved from the old policy's q; as in policy/terms.py."""
    p = tl.exp(logp)
    q = tl.exp(logp - log_ratio)
    difference = p - q
    first = tl.where(q == 0.0, 0.0, -q * log_ratio)
    kl = first + (1.0 - q) * tl.log((1.0 - q + 1e-8) / (1.0 - p + 1e-8))
    signed = tl.where(difference > 0.0, kl, tl.where(difference < 0.0, -kl, difference))
    return tl.where(log_ratio == 0.0, 0.0, tl.where(objective == 3.0, difference, signed))


@triton.jit
def _map(logp, log_ratio, ratio, advantage, low, high, objective, ratio_cap):
    """Loss, slope and what is compared with the bounds; see Note [Maps] in policy/objectives.py."""
    bounded = _bounded(ratio, low, high)
    # Where the ratio stands at a bound, it does not follow the log-probability.
    fixed = (ratio < low) | (ratio > high)
    measure = ratio
    loss = -bounded * advantage
    slope = tl.where(fixed, 0.0, -ratio * advantage)
    if (objective == 1.0) | (objective == 3.0) | (objective == 4.0):
        factor = bounded
        if objective != 1.0:
            measure = _divergence(logp, log_ratio, objective)
            outside = (measure < low) | (measure > high)
            factor = tl.where(outside, 0.0, tl.where(ratio > ratio_cap, ratio_cap, ratio))
        slope = -factor * advantage
        loss = tl.where(slope == 0.0, 0.0, slope * logp)
    elif objective == 2.0:
        distance = low * (ratio - 1.0)
        gate = 1.0 / (1.0 + tl.exp(-distance))
        # 1 - gate without cancellation.
        slope = -4.0 * gate / (1.0 + tl.exp(distance)) * ratio * advantage
        loss = -4.0 * gate / low * advantage
    elif objective == 5.0:
        slope = low * log_ratio - advantage
        loss = 0.5 * low * log_ratio * log_ratio - tl.where(advantage == 0.0, 0.0, advantage * logp)
    return loss, slope, measure


@triton.jit(do_not_specialize=(*_LENGTHS, *_FLAGS), do_not_specialize_on_alignment=_TOKEN_POINTERS)
def policy_rows_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, advantages_ptr, weights_ptr, old_logps_ptr, ref_logps_ptr, factors_ptr,
    entropy_weights_ptr, loss_ptr, logps_ptr, entropy_ptr, kl_ptr, clipped_ptr, grad_ptr,
    stride_sequence: tl.int64, stride_token: tl.int64, grad_stride_sequence: tl.int64, grad_stride_token: tl.int64,
    num_tokens: tl.int32, vocab_size: tl.int32,
    inv_temperature: tl.float32, objective: tl.float32, low_pos: tl.float32, high_pos: tl.float32,
    low_neg: tl.float32, high_neg: tl.float32, flag_low: tl.float32, flag_high: tl.float32, ratio_cap: tl.float32,
    beta: tl.float32, kl_clamp: tl.float32, unbiased_kl: tl.float32,
    has_old: tl.int32, has_ref: tl.int32, has_factors: tl.int32, has_entropy_weights: tl.int32, with_grad: tl.int32,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """All of the policy loss for one row; outputs [B, T] float32 are zeroed by the caller."""
    row = tl.program_id(0).to(tl.int64)
    vocab_size = _shown_multiple(vocab_size, ALIGNED)
    grad_row = grad_ptr + _row_offset(row, num_tokens, grad_stride_sequence, grad_stride_token, ALIGNED)
    if tl.load(mask_ptr + row) == 0:
        if with_grad != 0:
            _clear_row(grad_row, vocab_size, BLOCK)
        if with_grad == 2:  # it is 0 or 1
            _hold_registers(loss_ptr, BLOCK)
        return
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    # Asked for before the first loop, which hides their way from memory.
    token = tl.load(token_ids_ptr + row)
    logit = _token_logit(row_ptr, token, vocab_size)
    advantage = tl.load(advantages_ptr + row)
    old_logp = tl.load(old_logps_ptr + row, mask=has_old != 0, other=0.0)
    ref_logp = tl.load(ref_logps_ptr + row, mask=has_ref != 0, other=0.0)
    policy_factor = tl.load(factors_ptr + row, mask=has_factors != 0, other=1.0)
    weight = tl.load(weights_ptr + row)
    entropy_slope = -tl.load(entropy_weights_ptr + row, mask=has_entropy_weights != 0, other=0.0)
    largest, total, entropy = _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK, TOGETHER, "evict_last")
    log_sum = tl.log(total)
    logp = (logit - largest) * inv_temperature - log_sum
    # Without old_logps the ratio is exactly 1, also where logp is -inf. With them it is bounded; NaN stays NaN.
    log_ratio = tl.where(has_old != 0, logp - old_logp, 0.0)
    ratio = tl.exp(log_ratio)
    ratio = tl.where(ratio > _LARGEST, _LARGEST, ratio)
    low = tl.where(advantage > 0.0, low_pos, low_neg)
    high = tl.where(advantage > 0.0, high_pos, high_neg)
    loss, slope, measure = _map(logp, log_ratio, ratio, advantage, low, high, objective, ratio_cap)
    # Without advantage there is no policy term, whatever the ratio.
    nothing = (policy_factor == 0.0) | ((advantage == 0.0) & (objective != 5.0))
    loss = tl.where(nothing, 0.0, policy_factor * loss)
    slope = tl.where(nothing, 0.0, policy_factor * slope)
    too_low = (measure < flag_low) & (advantage < 0.0)
    too_high = (measure > flag_high) & (advantage > 0.0)
    clipped = tl.where(policy_factor > 0.0, too_high.to(tl.float32) - too_low.to(tl.float32), 0.0)
    if has_ref != 0:
        delta = ref_logp - logp
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
        slope *= weight
        if (slope == 0.0) & (entropy_slope == 0.0):
            # Every thread has read the token's logit; its row may now be overwritten.
            tl.debug_barrier()
            _clear_row(grad_row, vocab_size, BLOCK)
        else:
            _write_gradient(
                row_ptr, grad_row, vocab_size, inv_temperature, largest, log_sum, token, logit, slope, entropy,
                entropy_slope, BLOCK, "evict_first",
            )  # fmt: skip


@triton.jit(do_not_specialize=_LOGP_LENGTHS, do_not_specialize_on_alignment=_LOGP_POINTERS)
def logp_rows_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, logps_ptr, entropy_ptr, normaliser_ptr,
    stride_sequence: tl.int64, stride_token: tl.int64, num_tokens: tl.int32, vocab_size: tl.int32,
    inv_temperature: tl.float32, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Log-probability, entropy and normaliser (largest, log_sum) of one row; outputs are zeroed by the caller."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(mask_ptr + row) == 0:
        return
    vocab_size = _shown_multiple(vocab_size, ALIGNED)
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    logit = _token_logit(row_ptr, tl.load(token_ids_ptr + row), vocab_size)
    largest, total, entropy = _row_statistics(row_ptr, vocab_size, inv_temperature, BLOCK, TOGETHER, "evict_first")
    log_sum = tl.log(total)
    tl.store(logps_ptr + row, (logit - largest) * inv_temperature - log_sum)
    tl.store(entropy_ptr + row, entropy)
    tl.store(normaliser_ptr + 2 * row, largest)
    tl.store(normaliser_ptr + 2 * row + 1, log_sum)


@triton.jit(do_not_specialize=(*_LENGTHS, "has_grad_entropy"), do_not_specialize_on_alignment=_BACKWARD_POINTERS)
def logp_rows_backward_kernel(
    logits_ptr, token_ids_ptr, mask_ptr, entropy_ptr, normaliser_ptr, grad_logps_ptr, grad_entropy_ptr, grad_ptr,
    stride_sequence: tl.int64, stride_token: tl.int64, grad_stride_sequence: tl.int64, grad_stride_token: tl.int64,
    num_tokens: tl.int32, vocab_size: tl.int32, inv_temperature: tl.float32, has_grad_entropy: tl.int32,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
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
    row_ptr = logits_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
    token = tl.load(token_ids_ptr + row)
    _write_gradient(
        row_ptr, grad_row, vocab_size, inv_temperature, tl.load(normaliser_ptr + 2 * row),
        tl.load(normaliser_ptr + 2 * row + 1), token, _token_logit(row_ptr, token, vocab_size), slope,
        tl.load(entropy_ptr + row), entropy_slope, BLOCK, "",
    )  # fmt: skip


@triton.jit(do_not_specialize=_SCALE_LENGTHS, do_not_specialize_on_alignment=("scale_ptr",))
def scale_rows_kernel(
    grad_ptr, scale_ptr, stride_sequence: tl.int64, stride_token: tl.int64, num_rows: tl.int64, num_tokens: tl.int32,
    vocab_size: tl.int32, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Multiply stored gradients by a number that only the device knows; where it is 1 they are not touched."""
    scale = tl.load(scale_ptr)
    if scale != 1.0:
        vocab_size = _shown_multiple(vocab_size, ALIGNED)
        for row in range(tl.program_id(0).to(tl.int64), num_rows, tl.num_programs(0)):
            row_ptr = grad_ptr + _row_offset(row, num_tokens, stride_sequence, stride_token, ALIGNED)
            for start in range(0, vocab_size, BLOCK):
                offsets, grad = _load_block(row_ptr, start, vocab_size, BLOCK, "evict_first")
                _store_block(row_ptr, offsets, grad * scale, vocab_size, "evict_first")
