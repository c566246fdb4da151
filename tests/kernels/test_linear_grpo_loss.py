"""linear_grpo_loss against the loss of explicit logits: values, gradients, memory and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.grpo_cases import Case, assert_within_budget, make_case
from torch import Tensor

from zoomzero_kernels import grpo_loss, linear_grpo_loss, reference
from zoomzero_kernels.policy import head, rows
from zoomzero_kernels.policy.objectives import LOSS_TYPES, PolicyOptions
from zoomzero_kernels.policy.tensors import PolicyTensors

EPSILON = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def make_parameters(case: Case, width: int = 8, *, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [B, T, D], weight [V, D], bias [V] in float64, exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    batch, length, vocab = case.logits.shape
    shapes = ((batch, length, width), (vocab, width), (vocab,))
    hidden, weight, bias = (torch.randn(shape, generator=generator).bfloat16().double() for shape in shapes)
    return hidden, weight * 0.5, bias


def run(
    function: Any, parameters: tuple[Tensor, ...], case: Case, with_bias: bool, **options: Any
) -> tuple[Any, list[Tensor]]:
    leaves = [tensor.clone().requires_grad_() for tensor in parameters[: 2 + with_bias]]
    output = function(*leaves[:2], *case.tokens, bias=leaves[2] if with_bias else None, **options)
    return output, list(torch.autograd.grad(output.loss * 1.5, leaves))


# The pass over rows is that of grpo_loss, tested there with every option; here the matmuls around it and the gathering
# of valid rows matter: every dtype, with and without bias, token and sequence level, one chunk and many.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_matches_float64_truth(
    dtype: torch.dtype, with_bias: bool, level: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "rows_per_chunk", lambda num_rows, vocab_size, like: chunk)
    case = make_case(4, 5, 37)
    parameters = make_parameters(case)
    options = {"old_logps": case.old_logps, "ref_logps": case.ref_logps, "beta": 0.1, "temperature": 0.9}
    options["importance_sampling_level"] = level
    case.old_logps.fill_(-3.6)
    case.ref_logps.fill_(-3.4)
    narrow = tuple(tensor.to(dtype) for tensor in parameters)
    truth, truth_grads = run(reference.linear_grpo_loss, parameters, case, with_bias, **options)
    plain, plain_grads = run(reference.linear_grpo_loss, narrow, case, with_bias, **options)
    ours, grads = run(linear_grpo_loss, narrow, case, with_bias, **options)
    assert_within_budget(ours.loss, plain.loss, truth.loss, EPSILON[dtype], "loss")
    assert_within_budget(ours.logps, plain.logps, truth.logps, EPSILON[dtype], "logps")
    for got, same, exact, name in zip(grads, plain_grads, truth_grads, ("hidden", "weight", "bias"), strict=False):
        assert got.dtype == dtype
        assert_within_budget(got, same, exact, EPSILON[dtype], name)


def test_equals_the_loss_of_its_logits() -> None:
    case = make_case(4, 6, 50)
    hidden, weight, bias = make_parameters(case)
    for loss_type in LOSS_TYPES:
        options = {"old_logps": case.old_logps, "loss_type": loss_type, "num_items": 11.0, "max_completion_length": 8}
        options["delta"] = 1.2
        direct = grpo_loss(hidden @ weight.t() + bias, *case.tokens, **options)
        fused = linear_grpo_loss(hidden, weight, *case.tokens, bias=bias, **options)
        for field in direct._fields:
            torch.testing.assert_close(getattr(fused, field), getattr(direct, field), msg=field)


def test_gradcheck() -> None:
    case = make_case(2, 3, 5)
    leaves = [tensor.requires_grad_() for tensor in make_parameters(case, 3)]

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_grpo_loss(hidden, weight, *case.tokens, bias=bias, old_logps=case.old_logps.double()).loss

    assert torch.autograd.gradcheck(loss, leaves)


def test_garbage_in_masked_rows_does_not_leak() -> None:
    case = make_case(4, 6, 50)
    hidden, weight, bias = make_parameters(case)
    clean, clean_grads = run(linear_grpo_loss, (hidden, weight, bias), case, True)
    hidden[~case.mask] = torch.nan
    case.token_ids[~case.mask] = -100
    dirty, grads = run(linear_grpo_loss, (hidden, weight, bias), case, True)
    assert torch.equal(clean.loss, dirty.loss)
    for clean_grad, grad in zip(clean_grads, grads, strict=True):
        assert torch.equal(clean_grad, grad)


def test_all_masked_is_zero() -> None:
    case = make_case()
    case.mask.zero_()
    output, grads = run(linear_grpo_loss, make_parameters(case), case, True)
    assert output.loss.item() == 0
    assert all((grad == 0).all() for grad in grads)


def test_frozen_head_gets_no_gradient() -> None:
    case = make_case()
    hidden, weight, bias = make_parameters(case)
    hidden.requires_grad_()
    output = linear_grpo_loss(hidden, weight, *case.tokens, bias=bias)
    output.loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_a_chunk_is_a_twelfth_of_the_logits() -> None:
    assert head.rows_per_chunk(1024, 151936, torch.empty(0)) == 86
    # A small vocabulary is done at once; one row is the least.
    assert head.rows_per_chunk(512, 300, torch.empty(0)) >= 512
    assert head.rows_per_chunk(1, 10**9, torch.empty(0)) == 1


def test_never_holds_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SMALL_CHUNK_ELEMENTS", 1)
    case = make_case(8, 16, 301)
    hidden, weight, _ = (tensor.requires_grad_() for tensor in make_parameters(case))
    sizes: list[int] = []
    real = rows.policy_rows

    def watch(logits: Tensor, *args: Any) -> Any:
        sizes.append(logits.untyped_storage().nbytes())
        return real(logits, *args)

    monkeypatch.setattr(rows, "policy_rows", watch)
    linear_grpo_loss(hidden, weight, *case.tokens).loss.backward()
    assert len(sizes) > 8
    assert max(sizes) <= case.mask.sum() * 301 * 8 / 8


# A KL term and an entropy bonus give a token of advantage 0 a gradient.
@pytest.mark.parametrize(("options", "silent"), [({}, True), ({"beta": 0.1}, False), ({"entropy_coef": 0.1}, False)])
def test_tokens_without_a_gradient_skip_its_matmuls(
    options: dict[str, Any], silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(4, 6, 50)
    case.advantages[:, ::2] = 0
    learning = (case.mask & (case.advantages != 0)).sum() if silent else case.mask.sum()
    options = {"old_logps": case.old_logps, "ref_logps": case.ref_logps, **options}
    counts: list[int] = []
    real = head.HeadGradients.add

    def watch(gradients: head.HeadGradients, chunk: head.Chunk) -> None:
        counts.append(chunk.rows.shape[0])
        real(gradients, chunk)

    monkeypatch.setattr(head.HeadGradients, "add", watch)
    parameters = make_parameters(case)
    output, grads = run(linear_grpo_loss, parameters, case, True, **options)
    truth, truth_grads = run(reference.linear_grpo_loss, parameters, case, True, **options)
    assert sum(counts) == learning
    torch.testing.assert_close(output.logps, truth.logps)
    torch.testing.assert_close(grads, truth_grads)


# float16 gradients are stored without a factor, and 16-bit sums are rounded once: both are added by way of a copy.
@pytest.mark.parametrize(
    ("dtype", "total_dtype"),
    [
        (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32),
    ],
)  # fmt: skip
def test_the_gradient_of_the_weight_is_added(
    dtype: torch.dtype, total_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "rows_per_chunk", lambda num_rows, vocab_size, like: 4)
    case = make_case(4, 5, 37)
    hidden, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in make_parameters(case))
    options = {"old_logps": case.old_logps, "bias": bias, "loss_scale": 0.5}
    expected = torch.autograd.grad(linear_grpo_loss(hidden, weight, *case.tokens, **options).loss, [hidden, weight])
    total = torch.ones(weight.shape, dtype=total_dtype)
    with torch.no_grad():
        linear_grpo_loss(hidden, weight, *case.tokens, grad_weight=total, **options)
    assert (total == 1).all()
    linear_grpo_loss(hidden, weight, *case.tokens, grad_weight=total, **options).loss.backward()
    assert weight.grad is None
    torch.testing.assert_close(hidden.grad, expected[0])
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(total.double(), 1 + expected[1].double(), rtol=tolerance, atol=tolerance)
    # Of a weight of which nothing else is wanted, and of masked tokens only.
    again = torch.zeros_like(total)
    loss = linear_grpo_loss(hidden.detach(), weight, *case.tokens, grad_weight=again, old_logps=case.old_logps).loss
    assert not loss.requires_grad
    assert again.ne(0).any()
    nothing = (*case.tokens[:2], torch.zeros_like(case.mask))
    linear_grpo_loss(hidden, weight, *nothing, grad_weight=again.zero_()).loss.backward()
    assert (again == 0).all()


def test_the_gradient_of_a_weight_under_autocast_is_added_in_float32() -> None:
    case = make_case(4, 5, 37)
    hidden, weight, _ = (tensor.float().requires_grad_() for tensor in make_parameters(case))
    narrow = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    expected = torch.zeros(weight.shape)
    linear_grpo_loss(*narrow, *case.tokens, grad_weight=expected)
    total = torch.zeros(weight.shape)
    with torch.autocast("cpu", torch.bfloat16):
        linear_grpo_loss(hidden, weight, *case.tokens, grad_weight=total)
    assert torch.equal(total, expected)
    assert total.ne(0).any()


@pytest.mark.parametrize(
    ("grad_weight", "options", "message"),
    [
        (torch.zeros(36, 8), {}, r"must be torch.float32 \[37, 8\] .*, got float32 \[36, 8\]; pass weight.grad"),
        (torch.zeros(37, 8).half(), {}, r"must be torch.float32 .*, got float16"),
        (torch.zeros(37, 8, requires_grad=True), {}, "that requires no gradient"),
        (torch.zeros(37, 8, device="meta"), {}, "grad_weight must be on cpu, got meta"),
        (torch.zeros(37, 8), {"loss_type": "vespo"}, "needs a loss without terms of whole sequences, got .*'vespo'"),
    ],
)
def test_bad_targets_of_the_gradient(grad_weight: Tensor, options: dict[str, Any], message: str) -> None:
    case = make_case()
    hidden, weight, _ = (tensor.float() for tensor in make_parameters(case))
    with pytest.raises(ValueError, match=message):
        linear_grpo_loss(hidden, weight, *case.tokens, grad_weight=grad_weight, **options)


def test_opcheck_and_compile() -> None:
    case = make_case()
    hidden, weight, bias = (tensor.float().requires_grad_() for tensor in make_parameters(case))
    weights = case.mask.float() / case.mask.sum()
    tensors = PolicyTensors(case.token_ids, case.mask, case.advantages, weights, None, case.ref_logps)
    arguments = (hidden, weight, bias, tensors, PolicyOptions(beta=0.1, unbiased_kl=1.0), [1.0, 0.0], [True] * 3)
    torch.library.opcheck(torch.ops.zoomzero.linear_grpo_loss.default, arguments)
    # A second time into the same tensor would be another sum: nothing of autograd is checked of it.
    adding = (torch.zeros_like(weight), *(None if x is None else x.detach() for x in arguments[:3]), *arguments[3:-1])
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.zoomzero.linear_grpo_loss_.default, (*adding, [True, False, True]), test_utils=checks
    )

    def step(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_grpo_loss(hidden, weight, *case.tokens, bias=bias, old_logps=case.old_logps).loss * 2

    expected = torch.autograd.grad(step(hidden, weight, bias), (hidden, weight, bias))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(hidden, weight, bias), (hidden, weight, bias))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3, 8)}, ValueError, r"hidden must be floating point \[B, T, D\]"),
        ({"weight": torch.zeros(37, 9)}, ValueError, r"weight must be \[V, D\] with D = 8, got float32 \[37, 9\]"),
        ({"weight": torch.zeros(37, 8).half()}, TypeError, "weight must have the dtype of hidden"),
        ({"weight": torch.zeros(37, 8, device="meta")}, ValueError, "weight must be on cpu, got meta"),
        ({"bias": torch.zeros(36)}, ValueError, r"bias must be \[V\] with V = 37"),
        ({"beta": 1.0}, ValueError, "beta > 0 needs ref_logps"),
        ({"loss_type": "x"}, ValueError, "unknown loss_type"),
        ({"temperature": 0}, ValueError, "temperature must be finite and > 0"),
        ({"token_ids": torch.full((3, 5), 37)}, ValueError, r"token_ids must be in \[0, 37\)"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    case = make_case()
    hidden, weight, bias = (tensor.float() for tensor in make_parameters(case))
    arguments = {"hidden": hidden, "weight": weight, "bias": bias, "token_ids": case.token_ids}
    arguments |= {"advantages": case.advantages, "mask": case.mask, **change}
    with pytest.raises(error, match=f"linear_grpo_loss: {message}"):
        linear_grpo_loss(**arguments)
