"""What each loss type makes of its options: the numbers that the kernels take, and how token losses are averaged.

Note [Maps]: the kernels know six maps from a token's ratio r, log-probability and advantage A to its loss and slope,
each with two bounds for either sign of A, so that a loss type or an option is usually a line of arithmetic here:

- CLIP: ``-clamp(r, low, high) * A``, without a slope beyond the bounds;
- WEIGHTED: ``-clamp(r, low, high) * A * logp`` with a detached factor;
- GATE: ``-sigmoid(low * (r - 1)) * 4 / low * A``;
- TOTAL_VARIATION, BINARY_KL: ``-min(r, ratio_cap) * A * logp`` with a detached factor, for tokens whose signed
  divergence from the old policy lies within the bounds;
- SQUARE: ``-A * logp + low / 2 * log(r)**2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from zoomzero_kernels.policy.options import LossOptions, limit

CLIP, WEIGHTED, GATE, TOTAL_VARIATION, BINARY_KL, SQUARE = map(float, range(6))


class PolicyOptions(NamedTuple):
    """The objective of one token, as all back ends take it: numbers in this order.

    The order is that of PolicyOptions in csrc/policy_rows and of the arguments of policy_rows_kernel. Custom ops take
    it as a list of floats. See Note [Maps].

    temperature: the logits are divided by it.
    objective: which map.
    low_pos, high_pos: its bounds for advantages above 0.
    low_neg, high_neg: its bounds for other advantages.
    flag_low, flag_high: ratios (divergences) below the one count as clipped under a negative advantage, above the other
        under a positive one.
    ratio_cap: largest factor of TOTAL_VARIATION and BINARY_KL.
    beta: weight of the KL estimate.
    kl_clamp: largest KL estimate, inf for no limit.
    unbiased_kl: 1 if the KL estimate is multiplied by the ratio, else 0.
    """

    temperature: float = 1.0
    objective: float = CLIP
    low_pos: float = -math.inf
    high_pos: float = math.inf
    low_neg: float = -math.inf
    high_neg: float = math.inf
    flag_low: float = -math.inf
    flag_high: float = math.inf
    ratio_cap: float = math.inf
    beta: float = 0.0
    kl_clamp: float = math.inf
    unbiased_kl: float = 0.0


def _clip(options: LossOptions) -> dict[str, float]:
    """Of -min(min(r, delta) * A, clamp(r, low, high) * A), written as one clamp for either sign of A."""
    low, high, delta = 1 - options["clip_low"], 1 + options["clip_high"], limit(options["delta"])
    return {
        "high_pos": min(high, delta),
        "low_neg": low,
        "high_neg": max(high, delta),
        # As TRL counts: the bounded ratio against the clip range.
        "flag_low": math.inf if delta < low else low,
        "flag_high": math.inf if delta <= high else high,
    }


def _bounded_weight(options: LossOptions) -> dict[str, float]:
    high = options["clip_high"]
    return {"objective": WEIGHTED, "high_pos": high, "high_neg": high, "flag_high": high}


def _log_probability(options: LossOptions) -> dict[str, float]:
    """A factor of 1, whatever the ratio."""
    return {"objective": WEIGHTED, "low_pos": 1.0, "high_pos": 1.0, "low_neg": 1.0, "high_neg": 1.0}


def _gate(options: LossOptions) -> dict[str, float]:
    return {
        "objective": GATE,
        "low_pos": options["sapo_temperature_pos"],
        "low_neg": options["sapo_temperature_neg"],
    }


def _total_variation(options: LossOptions) -> dict[str, float]:
    low, high = -options["clip_low"], options["clip_high"]
    return {
        "objective": TOTAL_VARIATION, "high_pos": high, "low_neg": low, "flag_low": low, "flag_high": high,
        "ratio_cap": options["ratio_cap"],
    }  # fmt: skip


def _binary_kl(options: LossOptions) -> dict[str, float]:
    return {**_total_variation(options), "objective": BINARY_KL}


def _square(options: LossOptions) -> dict[str, float]:
    return {"objective": SQUARE, "low_pos": options["dro_beta"], "low_neg": options["dro_beta"]}


def _unbounded(options: LossOptions) -> dict[str, float]:
    """The ratio as it is: of "geo_mean", which clips the log-ratios of tokens before they are averaged."""
    return {}


class LossType(NamedTuple):
    """One loss type.

    normaliser: how token losses become one number, see token_weights in weights.py.
    bounds: its options as numbers for the kernels.
    levels: at which importance ratios it is defined.
    of_sequences: whether a token's term depends on all tokens of its sequence, at whatever level.
    """

    normaliser: str
    bounds: Callable[[LossOptions], dict[str, float]]
    levels: tuple[str, ...] = ("token", "sequence")
    of_sequences: bool = False


_TOKENS_ONLY: Any = ("token",)
LOSS_TYPES = {
    "grpo": LossType("sequence_means", _clip),
    "bnpo": LossType("tokens", _clip),
    "dr_grpo": LossType("width", _clip),
    "dapo": LossType("items", _clip),
    "luspo": LossType("sequence_sums", _clip),
    "cispo": LossType("items", _bounded_weight),
    "sapo": LossType("sequence_means", _gate),
    "vespo": LossType("items", _log_probability, of_sequences=True),
    "gpg": LossType("items", _log_probability),
    "dro": LossType("items", _square, _TOKENS_ONLY),
    "dppo_tv": LossType("items", _total_variation, _TOKENS_ONLY),
    "dppo_kl": LossType("items", _binary_kl, _TOKENS_ONLY),
    "geo_mean": LossType("sequence_means", _unbounded, _TOKENS_ONLY, of_sequences=True),
}
# Those that divide by a number of tokens, which may span processes and micro-batches.
ITEM_LOSS_TYPES = tuple(name for name, of in LOSS_TYPES.items() if of.normaliser == "items")


def check_loss_type(op: str, options: LossOptions) -> None:
    """Reject an unknown loss type, and one that is not defined at the level of importance sampling."""
    name, level = options["loss_type"], options["importance_sampling_level"]
    if name not in LOSS_TYPES:
        raise ValueError(f"{op}: unknown loss_type, got {name!r}; use one of {', '.join(LOSS_TYPES)}")
    if level not in LOSS_TYPES[name].levels:
        raise ValueError(
            f"{op}: loss_type {name!r} must have importance_sampling_level 'token', got {level!r}; leave the level out"
        )


def row_options(options: LossOptions) -> PolicyOptions:
    """The numbers that the kernels take of checked options."""
    # A scale of the logits is a temperature, unless a soft cap lies between them.
    scale = options["logit_scale"] if options["logit_softcap"] is None else 1.0
    return PolicyOptions(
        temperature=options["temperature"] / scale,
        beta=options["beta"],
        kl_clamp=limit(options["kl_clamp"]),
        unbiased_kl=float(options["unbiased_kl"]),
        **LOSS_TYPES[options["loss_type"]].bounds(options),
    )


def reads_twice(options: LossOptions) -> bool:
    """Whether a token's term needs the log-probabilities of its whole sequence: see Note [Sequence level]."""
    return (
        options["importance_sampling_level"] == "sequence"
        or LOSS_TYPES[options["loss_type"]].of_sequences
        or options["off_policy_threshold"] is not None
    )
