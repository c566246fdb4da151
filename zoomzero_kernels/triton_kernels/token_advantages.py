"""token_advantages as one Triton kernel: one program a group of responses.

Problem: see token_advantages.h; here the members of a group come from one sort of the group ids. Parallelisation: one
program a group, over blocks of members or of tokens. Memory traffic: mask and segments are read three times (2 bytes a
token, from the L2 cache after the first), advantages written once (4 bytes). Statistics are float64; no length is
specialised.
"""

import triton
import triton.language as tl

# Deviations below this share of the largest value are rounding of the float64 sums: equal rewards give exactly 0.
_EQUAL = tl.constexpr(1e-12)
_LENGTHS = ("num_tokens", "num_rewards", "num_segments")
_POINTERS = (
    "rewards_ptr", "credit_ptr", "segments_ptr", "mask_ptr", "order_ptr", "sorted_ids_ptr", "ends_ptr", "table_ptr",
    "advantages_ptr",
)  # fmt: skip


@triton.jit
def _credited(rewards_ptr, credit_ptr, responses, segment, num_rewards, num_segments, valid):
    """sum_r rewards[b, r] * credit[r, segment] for a block of responses."""
    total = tl.zeros(responses.shape, tl.float64)
    for r in range(num_rewards):
        reward = tl.load(rewards_ptr + responses * num_rewards + r, mask=valid, other=0.0)
        total += reward * tl.load(credit_ptr + r * num_segments + segment)
    return total


@triton.jit
def _total(rewards_ptr, credit_ptr, responses, num_rewards, num_segments, valid):
    """sum_r max_s(credit[r, s]) * rewards[b, r] for a block of responses."""
    total = tl.zeros(responses.shape, tl.float64)
    for r in range(num_rewards):
        largest = tl.load(credit_ptr + r * num_segments)
        for s in range(1, num_segments):
            largest = tl.maximum(largest, tl.load(credit_ptr + r * num_segments + s))
        total += largest * tl.load(rewards_ptr + responses * num_rewards + r, mask=valid, other=0.0)
    return total


@triton.jit
def _values(rewards_ptr, credit_ptr, responses, index, num_rewards, num_segments, valid, OF: tl.constexpr):
    """What is standardised over the responses: a segment's credited reward, a reward, or the total."""
    if OF == "segment":
        return _credited(rewards_ptr, credit_ptr, responses, index, num_rewards, num_segments, valid)
    elif OF == "reward":
        return tl.load(rewards_ptr + responses * num_rewards + index, mask=valid, other=0.0)
    else:
        return _total(rewards_ptr, credit_ptr, responses, num_rewards, num_segments, valid)


@triton.jit
def _members(order_ptr, start, last, BLOCK: tl.constexpr):
    position = start + tl.arange(0, BLOCK)
    valid = position < last
    return tl.load(order_ptr + position, mask=valid, other=0), valid


@triton.jit
def _shifted(values, lowest, scale):
    """Distance from the lowest value, exactly 0 where it is rounding."""
    difference = values - lowest
    return tl.where(tl.abs(difference) <= scale * _EQUAL, 0.0, difference)


@triton.jit
def _quotient(deviation, spread):
    """deviation / spread; a group without spread has no deviation either, and eps may be 0."""
    return tl.where(deviation == 0.0, 0.0, deviation / tl.where(deviation == 0.0, 1.0, spread))


@triton.jit
def _member_statistics(
    rewards_ptr, credit_ptr, order_ptr, first, last, index, num_rewards, num_segments, eps,
    OF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """lowest, scale, mean (of the shifted values) and std + eps over the responses of a group."""
    lowest = float("inf") + tl.zeros([], tl.float64)
    scale = tl.zeros([], tl.float64)
    for start in range(first, last, BLOCK):
        responses, valid = _members(order_ptr, start, last, BLOCK)
        values = _values(rewards_ptr, credit_ptr, responses, index, num_rewards, num_segments, valid, OF)
        lowest = tl.minimum(lowest, tl.min(tl.where(valid, values, float("inf")), 0))
        scale = tl.maximum(scale, tl.max(tl.where(valid, tl.abs(values), 0.0), 0))
    total = tl.zeros([], tl.float64)
    for start in range(first, last, BLOCK):
        responses, valid = _members(order_ptr, start, last, BLOCK)
        values = _values(rewards_ptr, credit_ptr, responses, index, num_rewards, num_segments, valid, OF)
        total += tl.sum(tl.where(valid, _shifted(values, lowest, scale), 0.0), 0)
    number = (last - first).to(tl.float64)
    mean = total / number
    squares = tl.zeros([], tl.float64)
    for start in range(first, last, BLOCK):
        responses, valid = _members(order_ptr, start, last, BLOCK)
        values = _values(rewards_ptr, credit_ptr, responses, index, num_rewards, num_segments, valid, OF)
        deviation = tl.where(valid, _shifted(values, lowest, scale) - mean, 0.0)
        squares += tl.sum(deviation * deviation, 0)
    return lowest, scale, mean, tl.sqrt(squares / tl.maximum(number - 1.0, 1.0)) + eps


@triton.jit
def _fill_column(
    rewards_ptr, credit_ptr, order_ptr, table_ptr, first, last, index, num_rewards, num_segments, eps,
    OF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Standardise one quantity over the group and add it to the table, credited as OF says."""
    single = last - first == 1
    lowest, scale, mean, spread = _member_statistics(
        rewards_ptr, credit_ptr, order_ptr, first, last, index, num_rewards, num_segments, eps, OF, BLOCK
    )
    for start in range(first, last, BLOCK):
        responses, valid = _members(order_ptr, start, last, BLOCK)
        values = _values(rewards_ptr, credit_ptr, responses, index, num_rewards, num_segments, valid, OF)
        deviation = _shifted(values, lowest, scale) - mean
        standard = tl.where(single, values / (1.0 + eps), _quotient(deviation, spread))
        row = table_ptr + responses * num_segments
        if OF == "segment":
            tl.store(row + index, standard, mask=valid)
        else:
            for s in range(num_segments):
                share = standard
                if OF == "reward":
                    share = standard * tl.load(credit_ptr + index * num_segments + s)
                    share += tl.load(row + s, mask=valid, other=0.0)
                tl.store(row + s, share, mask=valid)


@triton.jit
def _token_values(table_ptr, segments_ptr, mask_ptr, response, start, num_tokens, num_segments, BLOCK: tl.constexpr):
    """Table values of a block of tokens of one response, and which tokens are valid."""
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < num_tokens
    token = response * num_tokens + offsets
    valid = tl.load(mask_ptr + token, mask=inside, other=0) != 0
    segment = tl.load(segments_ptr + token, mask=valid, other=0).to(tl.int64)
    # A segment without a column has no value: NaN shows the mistake, where a read past the table would hide it.
    known = segment < num_segments
    values = tl.load(table_ptr + response * num_segments + segment, mask=valid & known, other=0.0)
    return tl.where(known, values, float("nan")), valid, token, inside


@triton.jit
def _token_statistics(
    table_ptr, segments_ptr, mask_ptr, order_ptr, first, last, num_tokens, num_segments, eps, BLOCK: tl.constexpr
):
    """lowest, scale, mean (of the shifted values) and std + eps over the valid tokens of a group."""
    lowest = float("inf") + tl.zeros([], tl.float64)
    scale = tl.zeros([], tl.float64)
    number = tl.zeros([], tl.float64)
    for k in range(first, last):
        response = tl.load(order_ptr + k)
        for start in range(0, num_tokens, BLOCK):
            values, valid, _, _ = _token_values(
                table_ptr, segments_ptr, mask_ptr, response, start, num_tokens, num_segments, BLOCK
            )
            lowest = tl.minimum(lowest, tl.min(tl.where(valid, values, float("inf")), 0))
            scale = tl.maximum(scale, tl.max(tl.where(valid, tl.abs(values), 0.0), 0))
            number += tl.sum(valid.to(tl.float64), 0)
    total = tl.zeros([], tl.float64)
    for k in range(first, last):
        response = tl.load(order_ptr + k)
        for start in range(0, num_tokens, BLOCK):
            values, valid, _, _ = _token_values(
                table_ptr, segments_ptr, mask_ptr, response, start, num_tokens, num_segments, BLOCK
            )
            total += tl.sum(tl.where(valid, _shifted(values, lowest, scale), 0.0), 0)
    mean = total / tl.maximum(number, 1.0)
    squares = tl.zeros([], tl.float64)
    for k in range(first, last):
        response = tl.load(order_ptr + k)
        for start in range(0, num_tokens, BLOCK):
            values, valid, _, _ = _token_values(
                table_ptr, segments_ptr, mask_ptr, response, start, num_tokens, num_segments, BLOCK
            )
            deviation = tl.where(valid, _shifted(values, lowest, scale) - mean, 0.0)
            squares += tl.sum(deviation * deviation, 0)
    return lowest, scale, mean, tl.sqrt(squares / tl.maximum(number - 1.0, 1.0)) + eps


@triton.jit
def _fill_table(
    rewards_ptr, credit_ptr, order_ptr, table_ptr, first, last, num_rewards, num_segments, eps,
    NORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table[b, s] of the group's members: the credited reward, standardised already unless by tokens."""
    if NORMALIZE == "rewards":
        for r in range(num_rewards):
            _fill_column(
                rewards_ptr, credit_ptr, order_ptr, table_ptr, first, last, r, num_rewards, num_segments, eps,
                "reward", BLOCK,
            )  # fmt: skip
    elif NORMALIZE == "sequence":
        _fill_column(
            rewards_ptr, credit_ptr, order_ptr, table_ptr, first, last, 0, num_rewards, num_segments, eps,
            "total", BLOCK,
        )  # fmt: skip
    elif NORMALIZE == "segments":
        for s in range(num_segments):
            _fill_column(
                rewards_ptr, credit_ptr, order_ptr, table_ptr, first, last, s, num_rewards, num_segments, eps,
                "segment", BLOCK,
            )  # fmt: skip
    else:
        for start in range(first, last, BLOCK):
            responses, valid = _members(order_ptr, start, last, BLOCK)
            for s in range(num_segments):
                values = _credited(rewards_ptr, credit_ptr, responses, s, num_rewards, num_segments, valid)
                tl.store(table_ptr + responses * num_segments + s, values, mask=valid)


@triton.jit(do_not_specialize=_LENGTHS, do_not_specialize_on_alignment=_POINTERS)
def token_advantages_kernel(
    rewards_ptr, credit_ptr, segments_ptr, mask_ptr, order_ptr, sorted_ids_ptr, ends_ptr, table_ptr, advantages_ptr,
    num_tokens: tl.int32, num_rewards: tl.int32, num_segments: tl.int32, eps: tl.float64,
    NORMALIZE: tl.constexpr, BLOCK_MEMBERS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """Advantages of one group: the program at the group's first place in the sorted order does all its members.

    rewards [B, R], credit [R, S] and the scratch table [B, S] (zeroed) are float64.
    """
    first = tl.program_id(0).to(tl.int64)
    previous = tl.maximum(first - 1, 0)
    if (first > previous) & (tl.load(sorted_ids_ptr + previous) == tl.load(sorted_ids_ptr + first)):
        return
    last = tl.load(ends_ptr + first)
    _fill_table(
        rewards_ptr, credit_ptr, order_ptr, table_ptr, first, last, num_rewards, num_segments, eps,
        NORMALIZE, BLOCK_MEMBERS,
    )  # fmt: skip
    # The table was written by other threads of this block.
    tl.debug_barrier()
    single = last - first == 1
    lowest = tl.zeros([], tl.float64)
    scale = tl.zeros([], tl.float64)
    mean = tl.zeros([], tl.float64)
    spread = tl.zeros([], tl.float64)
    if NORMALIZE == "tokens":
        lowest, scale, mean, spread = _token_statistics(
            table_ptr, segments_ptr, mask_ptr, order_ptr, first, last, num_tokens, num_segments, eps, BLOCK_TOKENS
        )
    for k in range(first, last):
        response = tl.load(order_ptr + k)
        for start in range(0, num_tokens, BLOCK_TOKENS):
            values, valid, token, inside = _token_values(
                table_ptr, segments_ptr, mask_ptr, response, start, num_tokens, num_segments, BLOCK_TOKENS
            )
            if NORMALIZE == "tokens":
                deviation = _shifted(values, lowest, scale) - mean
                values = tl.where(single, values / (1.0 + eps), _quotient(deviation, spread))
            tl.store(advantages_ptr + token, tl.where(valid, values, 0.0).to(tl.float32), mask=inside)
