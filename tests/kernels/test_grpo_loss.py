"""grpo_loss against float64 truth and golden numbers; bad input is in test_grpo_bad_input.py."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from support.grpo_cases import Case, assert_within_budget, make_case, with_gradient
from support.places import GOLDEN
from torch import Tensor

from zoomzero_kernels import grpo_loss, reference
from zoomzero_kernels.policy.objectives import LOSS_TYPES, PolicyOptions
from zoomzero_kernels.policy.tensors import PolicyTensors

EPSILON = {torch.float32: 1e-6, torch.bfloat16: 2e-4, torch.float16: 2e-4, torch.float64: 1e-12}


def options_of(case: Case, name: str) -> dict[str, Any]:
    """Option sets that reach every branch: on- and off-policy, KL with and without clamp, temperature."""
    return {
        "on_policy": {},
        "off_policy": {"old_logps": case.old_logps},
        "kl": {"old_logps": case.old_logps, "ref_logps": case.ref_logps, "beta": 0.1},
        "clamped_kl": {"ref_logps": case.ref_logps - 4, "beta": 0.1, "kl_clamp": 1.0},
        "temperature": {"old_logps": case.old_logps, "ref_logps": case.ref_logps, "beta": 0.04, "temperature": 0.6},
        "sequence": {
            "old_logps": case.old_logps,
            "ref_logps": case.ref_logps,
            "beta": 0.1,
            "importance_sampling_level": "sequence",
        },
        "unbiased_kl": {
            "old_logps": case.old_logps,
            "ref_logps": case.ref_logps - 2,
            "beta": 0.1,
            "kl_clamp": 2.0,
            "unbiased_kl": True,
        },
        # The ratio is 1, its gradient is not 0.
        "unbiased_on_policy": {"ref_logps": case.ref_logps, "beta": 0.1, "unbiased_kl": True},
        "unbiased_sequence": {
            "old_logps": case.old_logps,
            "ref_logps": case.ref_logps,
            "beta": 0.1,
            "unbiased_kl": True,
            "importance_sampling_level": "sequence",
        },
        # Ratios of e^1.5 and around, above the bound under advantages of both signs.
        "delta": {"old_logps": case.old_logps - 1.5, "delta": 3.0},
        # Below the clip range's end: the bound acts where the clip would have.
        "low_delta": {"old_logps": case.old_logps, "ref_logps": case.ref_logps, "beta": 0.1, "delta": 1.1},
        "sequence_delta": {
            "old_logps": case.old_logps - 0.5,
            "delta": 1.5,
            "importance_sampling_level": "sequence",
        },
        "weights": {
            "old_logps": case.old_logps,
            "ref_logps": case.ref_logps,
            "beta": 0.1,
            "token_weights": case.old_logps.abs().round() / 3,
        },
        # For "cispo" the bound itself: reached by some ratios.
        "high_bound": {"old_logps": case.old_logps, "ref_logps": case.ref_logps, "beta": 0.1, "clip_high": 1.1},
        "gates": {"old_logps": case.old_logps, "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 3.0},
        "wide_clip": {"old_logps": case.old_logps - 2, "clip_low": 0.0, "clip_high": 5.0},
        # Divergences on both sides of the trust region, and a factor at its cap.
        "trust_region": {"old_logps": case.old_logps, "clip_low": 0.01, "clip_high": 0.02, "ratio_cap": 1.2},
        "penalty": {"old_logps": case.old_logps, "dro_beta": 0.3, "token_weights": case.old_logps.abs().round() / 3},
        "entropy": {"old_logps": case.old_logps, "entropy_coef": 0.3},
        "sequence_entropy": {
            "old_logps": case.old_logps,
            "entropy_coef": torch.tensor(-0.2),
            "importance_sampling_level": "sequence",
        },
        "entropy_mask": {
            "old_logps": case.old_logps,
            "ref_logps": case.ref_logps,
            "beta": 0.1,
            "entropy_coef": 0.3,
            "entropy_mask": case.old_logps > case.old_logps.median(),
        },
        "sampler": {
            "old_logps": case.old_logps,
            "importance_sampling_ratio": (case.ref_logps - case.old_logps).exp().clamp(max=2.0),
        },
        "sampler_of_sequences": {
            "old_logps": case.old_logps,
            "token_weights": case.old_logps.abs().round() / 3,
            "importance_sampling_ratio": torch.tensor([[0.5], [0.0], [1.5]]),
        },
        "off_policy_mask": {"old_logps": case.old_logps - 0.1, "off_policy_threshold": 0.0},
        "sampled_far_away": {
            "old_logps": case.old_logps,
            "sampling_logps": case.ref_logps.masked_fill(case.ref_logps > -3, math.nan),
            "off_policy_threshold": 0.1,
        },
        "cap": {"old_logps": case.old_logps, "logit_softcap": 3.0, "logit_scale": 0.8, "temperature": 0.7},
        "scale": {"old_logps": case.old_logps, "logit_scale": 1.2, "temperature": 0.7},
        "loss_scale": {"old_logps": case.old_logps, "entropy_coef": 0.3, "loss_scale": 0.25},
        "vespo": {
            "old_logps": case.old_logps,
            "vespo_k_pos": 1.0,
            "vespo_lambda_pos": 0.5,
            "vespo_k_neg": 0.5,
            "vespo_lambda_neg": 1.5,
        },
    }[name]


OPTION_NAMES = (
    "on_policy", "off_policy", "kl", "clamped_kl", "temperature", "sequence", "unbiased_kl", "unbiased_on_policy",
    "unbiased_sequence", "wide_clip", "delta", "low_delta", "sequence_delta", "weights", "high_bound",
    "gates", "trust_region", "penalty", "entropy", "sequence_entropy", "entropy_mask", "sampler",
    "sampler_of_sequences", "off_policy_mask", "sampled_far_away", "cap", "scale", "loss_scale", "vespo",
)  # fmt: skip


def is_defined(loss_type: str, options: dict[str, Any]) -> bool:
    return options.get("importance_sampling_level", "token") in LOSS_TYPES[loss_type].levels


# Loss types only change the weights of tokens and options only their terms, so crossing both in float64 covers their
# products, and the other dtypes, which share the formulas, run every option with one loss type of each formula.
@pytest.mark.parametrize(
    ("dtype", "loss_type", "name"),
    [
        *itertools.product([torch.float64], LOSS_TYPES, OPTION_NAMES),
        *itertools.product([torch.float32, torch.bfloat16, torch.float16], ["dapo"], OPTION_NAMES),
        *itertools.product([torch.float32], ["cispo", "sapo", "dppo_tv", "dppo_kl", "dro"], OPTION_NAMES),
        (torch.float32, "grpo", "kl"),
    ],
)
def test_matches_float64_truth(dtype: torch.dtype, loss_type: str, name: str) -> None:
    case = make_case()
    options = {**options_of(case, name), "loss_type": loss_type, "max_completion_length": 9}
    if not is_defined(loss_type, options):
        with pytest.raises(ValueError, match=f"loss_type '{loss_type}' must have importance_sampling_level 'token'"):
            grpo_loss(case.logits, *case.tokens, **options)
        return
    truth, truth_grad = with_gradient(reference.grpo_loss, case.logits, *case.tokens, upstream=1.7, **options)
    plain, plain_grad = with_gradient(reference.grpo_loss, case.logits.to(dtype), *case.tokens, upstream=1.7, **options)
    ours, grad = with_gradient(grpo_loss, case.logits.to(dtype), *case.tokens, upstream=1.7, **options)
    epsilon = EPSILON[torch.float64 if dtype == torch.float64 else torch.float32]
    for field in ours._fields:
        assert_within_budget(getattr(ours, field), getattr(plain, field), getattr(truth, field), epsilon, field)
    assert grad.dtype == dtype
    assert_within_budget(grad, plain_grad, truth_grad, EPSILON[dtype], "gradient")
    assert (grad[~case.mask] == 0).all()


@pytest.mark.parametrize("index", range(len(GOLDEN["loss"])))
def test_matches_golden(index: int) -> None:
    golden = GOLDEN["loss"][index]
    logp = torch.tensor(golden["logp"])
    # Two-entry rows whose first entry has exactly the wanted log-probability.
    other = torch.log1p(-logp.double().exp()).float()
    mask = torch.arange(logp.shape[1]) < torch.tensor(golden["lengths"]).unsqueeze(1)
    output, grad = with_gradient(
        grpo_loss,
        torch.stack([logp, other], dim=-1),
        torch.zeros_like(logp, dtype=torch.int64),
        torch.tensor(golden["advantages"]),
        mask,
        old_logps=torch.tensor(golden["old_logp"]),
        ref_logps=torch.tensor(golden["ref_logp"]),
        beta=golden["beta"],
        clip_low=golden["clip_low"],
        clip_high=golden["clip_high"],
    )
    assert output.loss.item() == pytest.approx(golden["loss"], abs=1e-5)
    assert output.kl.item() == pytest.approx(golden["kl"], abs=1e-5)
    assert output.clip_fraction.item() == pytest.approx(golden["clip_fraction"], abs=1e-5)
    # d logp / d z_0 = 1 - p_0, so the gradient of logp is that of z_0 divided by it.
    torch.testing.assert_close(grad[..., 0] / (1 - logp.exp()), torch.tensor(golden["grad_logp"]), atol=1e-5, rtol=0)


def test_gradcheck() -> None:
    case = make_case(2, 3, 5)
    options = {"old_logps": case.old_logps.double(), "ref_logps": case.ref_logps.double(), "beta": 0.2}
    for level in ("token", "sequence"):

        def loss(logits: Tensor, level: str = level) -> Tensor:
            return grpo_loss(logits, *case.tokens, importance_sampling_level=level, **options).loss

        assert torch.autograd.gradcheck(loss, (case.logits.clone().requires_grad_(),))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_masked_garbage_does_not_leak(garbage: float, level: str) -> None:
    case = make_case()
    options = {
        "old_logps": case.old_logps,
        "ref_logps": case.ref_logps,
        "beta": 0.1,
        "importance_sampling_level": level,
    }
    clean, clean_grad = with_gradient(grpo_loss, case.logits.float(), *case.tokens, **options)
    hole = ~case.mask
    dirty = {
        key: torch.where(hole, garbage, value) if torch.is_tensor(value) else value for key, value in options.items()
    }
    ids = torch.where(hole, -100, case.token_ids)
    logits = torch.where(hole.unsqueeze(-1), garbage, case.logits.float())
    advantages = torch.where(hole, garbage, case.advantages)
    ours, grad = with_gradient(grpo_loss, logits, ids, advantages, case.mask, **dirty)
    for field in ours._fields:
        assert torch.equal(getattr(ours, field), getattr(clean, field)), field
    assert torch.equal(grad, clean_grad)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_all_masked_is_zero(loss_type: str, level: str) -> None:
    case = make_case()
    options = {"loss_type": loss_type, "importance_sampling_level": level, "ref_logps": case.ref_logps, "beta": 0.1}
    options["entropy_coef"] = 0.1
    if not is_defined(loss_type, options):
        return
    nothing = torch.zeros_like(case.mask)
    ours, grad = with_gradient(grpo_loss, case.logits.float(), case.token_ids, case.advantages, nothing, **options)
    assert [value.abs().max().item() for value in ours] == [0.0] * 8
    assert torch.equal(grad, torch.zeros_like(grad))


# V = 1 has no vector body at all, 15..17 straddle a 16-lane vector, 4097 a block of the row loop.
@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 255, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_vocabulary_size(vocab: int, dtype: torch.dtype) -> None:
    case = make_case(2, 3, vocab)
    options = {"old_logps": case.old_logps}
    truth, truth_grad = with_gradient(reference.grpo_loss, case.logits, *case.tokens, **options)
    plain, plain_grad = with_gradient(reference.grpo_loss, case.logits.to(dtype), *case.tokens, **options)
    ours, grad = with_gradient(grpo_loss, case.logits.to(dtype), *case.tokens, **options)
    assert_within_budget(ours.entropy, plain.entropy, truth.entropy, 1e-5, "entropy")
    assert_within_budget(ours.logps, plain.logps, truth.logps, 1e-5, "logps")
    assert_within_budget(grad, plain_grad, truth_grad, EPSILON[dtype], "gradient")


def test_extreme_logits() -> None:
    case = make_case(1, 4, 40)
    logits = case.logits.float()
    logits[0, 0, 3:30] = -math.inf
    logits[0, 1] *= 1e4
    logits[0, 2] = 1e4
    case.token_ids[0] = torch.tensor([1, 5, 0, 2])
    mask = torch.tensor([[True, True, True, False]])
    truth, truth_grad = with_gradient(reference.grpo_loss, logits.double(), case.token_ids, case.advantages, mask)
    ours, grad = with_gradient(grpo_loss, logits, case.token_ids, case.advantages, mask)
    torch.testing.assert_close(ours.logps.double(), truth.logps, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.entropy.double(), truth.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), truth_grad, rtol=1e-5, atol=1e-6)
    assert (grad[0, 0, 3:30] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_valid_row_shows_in_its_own_outputs_only(bad: float) -> None:
    case = make_case(1, 2, 8)
    logits = case.logits.float()
    logits[0, 0, 2] = bad
    mask = torch.ones(1, 2, dtype=torch.bool)
    ours, grad = with_gradient(grpo_loss, logits, case.token_ids, case.advantages + 1, mask, old_logps=case.old_logps)
    assert ours.logps[0, 0].isnan()
    assert ours.loss.isnan()
    assert ours.logps[0, 1].isfinite()
    assert grad[0, 0].isnan().any()
    assert grad[0, 1].isfinite().all()


def test_zero_advantages_have_no_gradient() -> None:
    case = make_case()
    ours, grad = with_gradient(
        grpo_loss,
        case.logits.float(),
        case.token_ids,
        torch.zeros_like(case.advantages),
        case.mask,
        old_logps=case.old_logps,
    )
    assert ours.loss.item() == 0
    assert (grad == 0).all()


def test_advantage_a_sequence_equals_the_same_a_token() -> None:
    case = make_case()
    single = case.advantages[:, 0]
    options = {"old_logps": case.old_logps}
    one, one_grad = with_gradient(grpo_loss, case.logits.float(), case.token_ids, single, case.mask, **options)
    spread = single.unsqueeze(1).expand_as(case.mask)
    many, many_grad = with_gradient(grpo_loss, case.logits.float(), case.token_ids, spread, case.mask, **options)
    assert torch.equal(one.loss, many.loss)
    assert torch.equal(one_grad, many_grad)


def test_strided_logits_and_integer_mask() -> None:
    case = make_case(3, 6, 21)
    wide = torch.randn(3, 9, 21)
    wide[:, 2:8] = case.logits.float()
    view = wide[:, 2:8]
    transposed = case.logits.float().transpose(1, 2).contiguous().transpose(1, 2)
    plain, plain_grad = with_gradient(grpo_loss, case.logits.float(), *case.tokens)
    for logits in (view, transposed):
        leaf = logits.detach().requires_grad_()
        output = grpo_loss(leaf, case.token_ids.int(), case.advantages, case.mask.long())
        (grad,) = torch.autograd.grad(output.loss, leaf)
        assert torch.equal(output.loss, plain.loss)
        assert torch.equal(grad, plain_grad)


def test_num_items_replaces_the_token_count_of_dapo() -> None:
    case = make_case()
    whole = grpo_loss(case.logits.float(), *case.tokens).loss
    halves = [
        grpo_loss(case.logits.float()[rows], *(x[rows] for x in case.tokens), num_items=case.mask.sum()).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(halves[0] + halves[1], whole)
    number = grpo_loss(case.logits.float(), *case.tokens, num_items=float(case.mask.sum()))
    torch.testing.assert_close(number.loss, whole)


def test_float16_gradient_survives_a_small_weight() -> None:
    case = make_case(1, 2, 8)
    mask = torch.ones(1, 2, dtype=torch.bool)
    logits = case.logits.half()
    options = {"num_items": 1e6}
    scale = 2.0**16
    _, truth = with_gradient(
        reference.grpo_loss, case.logits, case.token_ids, case.advantages + 1, mask, upstream=scale, **options
    )
    _, grad = with_gradient(grpo_loss, logits, case.token_ids, case.advantages + 1, mask, upstream=scale, **options)
    torch.testing.assert_close(grad.double(), truth, rtol=2e-3, atol=1e-7)


def test_metrics_do_not_need_gradients() -> None:
    case = make_case()
    with torch.no_grad():
        output = grpo_loss(case.logits.float().requires_grad_(), *case.tokens)
    assert not any(value.requires_grad for value in output)
    output = grpo_loss(case.logits.float().requires_grad_(), *case.tokens)
    assert [value.requires_grad for value in output] == [True] + [False] * 7


def test_empty_batch() -> None:
    empty = torch.zeros(0, 4)
    output, grad = with_gradient(
        grpo_loss, torch.zeros(0, 4, 7), empty.long(), empty, empty.bool(), old_logps=empty, loss_type="grpo"
    )
    assert output.loss.item() == 0
    assert grad.shape == (0, 4, 7)


def test_opcheck_and_compile() -> None:
    case = make_case()
    logits = case.logits.float().requires_grad_()
    weights = case.mask.float() / case.mask.sum()
    tensors = PolicyTensors(case.token_ids, case.mask, case.advantages, weights, case.old_logps, case.ref_logps)
    options = PolicyOptions(beta=0.1, unbiased_kl=1.0)
    torch.library.opcheck(torch.ops.zoomzero.grpo_loss.default, (logits, tensors, options, True))
    torch.library.opcheck(torch.ops.zoomzero.grpo_loss_.default, (case.logits.float(), tensors, options))

    def step(logits: Tensor, inplace: bool) -> Tensor:
        output = grpo_loss(logits * 1, *case.tokens, old_logps=case.old_logps, inplace=inplace)
        return output.loss * 2

    for inplace in (False, True):
        expected = torch.autograd.grad(step(logits, inplace), logits)[0]
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(logits, inplace), logits)[0]
        torch.testing.assert_close(got, expected)
