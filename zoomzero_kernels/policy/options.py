"""The options of the policy losses: one table, of which arguments, documentation, defaults and checks are made.

An option is one entry of LossOptions. What the kernels see of it is decided in objectives.py.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, ParamSpec, TypedDict, TypeVar, cast, get_type_hints

from torch import Tensor

from zoomzero_kernels.host.checks import describe

IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Range(NamedTuple):
    """Numbers that an option may be: in words, and whether a number is one of them."""

    text: str
    # Comparisons, not math.isfinite, which torch.compile cannot trace for a symbolic number.
    fits: Callable[[float], bool]


POSITIVE = Range("finite and > 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range("finite and >= 0", lambda value: 0 <= value < math.inf)
ABOVE_ZERO = Range("> 0", lambda value: value > 0)
FROM_ZERO = Range(">= 0", lambda value: value >= 0)
BELOW_ONE = Range("in [0, 1)", lambda value: 0 <= value < 1)
FINITE = Range("finite", lambda value: -math.inf < value < math.inf)


class Option(NamedTuple):
    """What is known of an option beside its name and type.

    default: its value where it is not given.
    meaning: for the documentation.
    allowed: the numbers or words it may be, None where anything goes or where it is checked elsewhere.
    remedy: what the error message advises.
    """

    default: Any
    meaning: str
    allowed: Range | tuple[str, ...] | None = None
    remedy: str = ""

    def check(self, op: str, name: str, value: Any) -> None:
        """Reject a value outside its range; None is checked by whoever takes the default for it."""
        if isinstance(self.allowed, Range):
            number = value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value
            if number is not None and not isinstance(number, Tensor) and not self.allowed.fits(number):
                raise ValueError(f"{op}: {name} must be {self.allowed.text}, got {value}; {self.remedy}")
        elif self.allowed is not None and value not in self.allowed:
            raise ValueError(f"{op}: unknown {name}, got {value!r}; use {', '.join(self.allowed)}")


class LossOptions(TypedDict, total=False):
    """Options of grpo_loss and linear_grpo_loss; tensors are [B, T] and detached, masked tokens may hold anything."""

    old_logps: Annotated[
        Tensor | None,
        Option(None, "log-probabilities of the sampling policy at the same temperature; None means on-policy."),
    ]
    ref_logps: Annotated[
        Tensor | None,
        Option(None, "of the reference model; needed when ``beta > 0``, reported as ``kl`` in any case."),
    ]
    token_weights: Annotated[
        Tensor | None,
        Option(
            None,
            "factors of the policy terms, not of the KL term: masks or other weights, finite and >= 0. A token of "
            "weight 0 counts in the normaliser, but not as clipped.",
        ),
    ]
    importance_sampling_ratio: Annotated[
        Tensor | None,
        Option(
            None,
            "[B, T] or [B, 1], how much likelier a token was under the old policy than where it was sampled, "
            'truncated or masked by the caller: a factor as ``token_weights``, for "vespo" a part of the '
            "sequence's ratio.",
        ),
    ]
    sampling_logps: Annotated[
        Tensor | None,
        Option(None, "log-probabilities that the sampler reported, for ``off_policy_threshold``; old_logps if None."),
    ]
    entropy_mask: Annotated[
        Tensor | None,
        Option(
            None,
            "bool, tokens that keep their policy term and take part in the entropy bonus (top-entropy tokens); the "
            "others keep their KL term and their place in the normaliser.",
        ),
    ]
    temperature: Annotated[
        float, Option(1.0, "the logits are divided by it.", POSITIVE, "pass 1.0 for unscaled logits")
    ]
    logit_scale: Annotated[
        float,
        Option(1.0, "the logits are multiplied by it, before the soft cap (Cohere).", POSITIVE, "pass 1.0 for none"),
    ]
    logit_softcap: Annotated[
        float | None,
        Option(
            None,
            "the logits become ``cap * tanh(logits / cap)`` before the temperature (Gemma); None for no cap.",
            POSITIVE,
            "pass logit_softcap=None for no cap",
        ),
    ]
    beta: Annotated[
        float,
        Option(
            0.0,
            "weight of the k3 estimate of the KL divergence to the reference.",
            NOT_NEGATIVE,
            "pass beta=0.0 to leave the KL term out",
        ),
    ]
    kl_clamp: Annotated[
        float | None,
        Option(
            10.0,
            "largest value of the k3 estimate, None for no limit (as TRL).",
            ABOVE_ZERO,
            "pass kl_clamp=None for an unclamped estimate",
        ),
    ]
    unbiased_kl: Annotated[
        bool,
        Option(
            False,
            "multiply the KL estimate by the importance ratio, gradient included, which makes it unbiased where the "
            "policy has left the one that sampled (DeepSeek-V3.2; TRL's ``use_bias_correction_kl``).",
        ),
    ]
    clip_low: Annotated[
        float,
        Option(
            0.2,
            'the ratio is clipped to at least 1 - clip_low; for "geo_mean" the log-ratio to -clip_low; for '
            '"dppo_tv" and "dppo_kl" the largest divergence below the old policy.',
            BELOW_ONE,
            "the ratio is clipped at 1 - clip_low",
        ),
    ]
    clip_high: Annotated[
        float,
        Option(
            0.28,
            'the ratio is clipped to at most 1 + clip_high; for "cispo" the bound of the ratio itself, as TRL\'s '
            '``epsilon_high``; for "geo_mean" of the log-ratio; for "dppo_tv" and "dppo_kl" the largest '
            "divergence above the old policy.",
            FROM_ZERO,
            "the ratio is clipped at 1 + clip_high",
        ),
    ]
    delta: Annotated[
        float | None,
        Option(
            None,
            "the ratio is at most this before it is compared with the clipped one, which bounds the loss of negative "
            "advantages (two-sided clipping, INTELLECT-2; TRL's ``delta``); None for no bound.",
            ABOVE_ZERO,
            "pass delta=None for an unbounded ratio",
        ),
    ]
    ratio_cap: Annotated[
        float,
        Option(
            20.0,
            'largest factor of "dppo_tv" and "dppo_kl" (verl\'s ``clip_ratio_c``).',
            ABOVE_ZERO,
            "verl has 20.0",
        ),
    ]
    sapo_temperature_pos: Annotated[
        float, Option(1.0, 'steepness of the gate of "sapo" for advantages above 0.', POSITIVE, "TRL has 1.0")
    ]
    sapo_temperature_neg: Annotated[float, Option(1.05, "the same for other advantages.", POSITIVE, "TRL has 1.05")]
    vespo_k_pos: Annotated[
        float,
        Option(
            2.0,
            'power of the sequence\'s ratio w in the weight ``exp(lambda) * w**k * exp(-lambda * w)`` of "vespo", for '
            "advantages >= 0.",
            NOT_NEGATIVE,
            "TRL has 2.0",
        ),
    ]
    vespo_lambda_pos: Annotated[float, Option(3.0, "lambda of the same weight.", NOT_NEGATIVE, "TRL has 3.0")]
    vespo_k_neg: Annotated[float, Option(3.0, "k for negative advantages.", NOT_NEGATIVE, "TRL has 3.0")]
    vespo_lambda_neg: Annotated[float, Option(2.0, "lambda for negative advantages.", NOT_NEGATIVE, "TRL has 2.0")]
    dro_beta: Annotated[
        float, Option(1.0, 'weight of half the squared log-ratio in "dro".', POSITIVE, 'pass loss_type="gpg" for 0')
    ]
    entropy_coef: Annotated[
        float | Tensor,
        Option(
            0.0,
            "the mean entropy of the valid tokens (of those in ``entropy_mask``) times this is taken from the loss, "
            "with its gradient. A float, or a number in a tensor.",
            FINITE,
            "pass 0.0 for no bonus",
        ),
    ]
    off_policy_threshold: Annotated[
        float | None,
        Option(
            None,
            "sequences whose mean ``sampling_logps - logps`` exceeds it lose the policy terms of their negative "
            "advantages (DeepSeek-V3.2; TRL's ``off_policy_mask_threshold``).",
            FROM_ZERO,
            "pass None to keep all sequences",
        ),
    ]
    importance_sampling_level: Annotated[
        str,
        Option(
            "token", "\"token\", or \"sequence\" for the mean log-ratio of each sequence (GSPO).",
            IMPORTANCE_SAMPLING_LEVELS,
        ),
    ]  # fmt: skip
    loss_type: Annotated[
        str,
        Option(
            "dapo",
            'as in TRL. "grpo", "bnpo", "dr_grpo", "dapo" and "luspo" clip the ratio and differ in their '
            'normaliser. "cispo" weighs the log-probability by the bounded ratio, a detached factor, "vespo" by a '
            'smooth function of the sequence\'s ratio; "sapo" puts a soft gate in the place of the clip. As in verl: '
            '"gpg" is the log-probability times the advantage, "dro" adds half the squared log-ratio, '
            '"dppo_tv" and "dppo_kl" drop tokens whose probability left a trust region, "geo_mean" clips the '
            "geometric mean of a sequence's ratios. See LOSS_TYPES in objectives.py.",
        ),
    ]
    max_completion_length: Annotated[
        int | None,
        Option(
            None,
            'length in the normaliser of "dr_grpo", the width T if None.',
            ABOVE_ZERO,
            "pass the trainer's limit",
        ),
    ]
    num_items: Annotated[
        Tensor | float | None,
        Option(
            None,
            'tokens in the normaliser of "dapo" and others (over all processes and accumulation steps), the valid '
            "tokens of this batch if None; the loss types that average otherwise do not use it.",
            FROM_ZERO,
            "pass the number of valid tokens",
        ),
    ]
    loss_scale: Annotated[
        Tensor | float,
        Option(
            1.0,
            "factor of the loss, e.g. 1 / accumulation steps: its gradient is then stored ready for use, and a "
            "backward pass of an unscaled loss does not touch it again.",
            FINITE,
            "pass 1.0 for none",
        ),
    ]


_HINTS = get_type_hints(LossOptions, include_extras=True)
OPTIONS: dict[str, Option] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
_DEFAULTS = {name: option.default for name, option in OPTIONS.items()}


def checked_options(op: str, given: LossOptions) -> LossOptions:
    """All options, defaults where none is given.

    Raises:
        ValueError: a value outside its range.
        TypeError: an option that does not exist, or a number in a tensor of several.
    """
    for name, value in given.items():
        if name not in OPTIONS:
            raise TypeError(f"{op}() got an unexpected keyword argument {name!r}; use one of {', '.join(OPTIONS)}")
        option = OPTIONS[name]
        if isinstance(value, Tensor) and isinstance(option.allowed, Range) and value.numel() != 1:
            raise ValueError(f"{op}: {name} must be one number, got {describe(value)}; pass a float or a 0-d tensor")
        option.check(op, name, value)
    return cast(LossOptions, {**_DEFAULTS, **given})


def check_temperature(op: str, temperature: float) -> None:
    """Reject a temperature that is zero, negative or not finite."""
    OPTIONS["temperature"].check(op, "temperature", temperature)


def limit(value: float | None) -> float:
    """An upper bound as a number: inf for None."""
    return math.inf if value is None else value


def takes_options(op: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Show the options in the signature and the documentation of an op that takes them as ``**options``."""
    signature = inspect.signature(op)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    # The type without what is attached to it, as it would stand in a signature.
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hint.__origin__)
        for (name, hint), option in zip(_HINTS.items(), OPTIONS.values(), strict=True)
    ]
    op.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
    lines = [
        textwrap.fill(f"{name}: {option.meaning}", 120, initial_indent=" " * 8, subsequent_indent=" " * 12)
        for name, option in OPTIONS.items()
    ]
    op.__doc__ = (op.__doc__ or "").replace("        options: see LossOptions.", "\n".join(lines))
    return op
