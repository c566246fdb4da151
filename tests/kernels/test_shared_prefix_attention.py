"""shared_prefix_attention against dense attention: values, gradients, padding, kernels, memory and bad input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grpo_cases import assert_within_budget
from support.ragged_flash import ragged_flash_in_plain_torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoomzero_kernels import build_info, reference, shared_prefix_attention
from zoomzero_kernels.attention import eager, flash, merged
from zoomzero_kernels.attention.blocks import Inputs, Kernel, Results, blocks_of, flat_layout
from zoomzero_kernels.attention.eager import EagerKernel
from zoomzero_kernels.attention.flash import CpuFlashKernel, RaggedFlashKernel

# Two rows: branches of equal and of unequal length, none, empty ones; no prefix; padding in the second row only.
PREFIXES, BRANCHES, LENGTH = [11, 7, 0], [[4, 4, 0, 3], [2], [5, 9]], 22
EPSILON = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make_tensors(
    heads: tuple[int, int] = (6, 2), size: int = 8, rows: int = 3, length: int = LENGTH, seed: int = 0
) -> list[Tensor]:
    """query, key and value in float64, exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, count, length, size) for count in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape, generator=generator).bfloat16().double() for shape in shapes]


def run(function: Any, tensors: Sequence[Tensor], *lengths: Any, **options: Any) -> list[Tensor]:
    """Output and gradients in query, key and value of a weighted sum of it."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves, *lengths, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.fixture
def ragged_ops() -> Iterator[None]:
    """The two private CUDA ops in plain torch: our calls run for real."""
    with ragged_flash_in_plain_torch():
        yield


def with_kernel(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    monkeypatch.setattr(flash, "kernel_for", lambda _: kernel)


# As many key heads as heads, fewer, and one; head sizes that vectors of 4, 8 and 16 numbers do not divide.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "size"), [((6, 2), 8), ((3, 3), 13), ((4, 1), 64)])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_equals_dense_attention(dtype: torch.dtype, heads: tuple[int, int], size: int, scale: float | None) -> None:
    tensors = make_tensors(heads, size)
    truth = run(reference.shared_prefix_attention, tensors, PREFIXES, BRANCHES, scale=scale)
    narrow = [tensor.to(dtype) for tensor in tensors]
    plain = run(reference.shared_prefix_attention, narrow, PREFIXES, BRANCHES, scale=scale)
    ours = run(shared_prefix_attention, narrow, PREFIXES, BRANCHES, scale=scale)
    for got, same, exact, name in zip(ours, plain, truth, ("out", "query", "key", "value"), strict=True):
        assert got.dtype == dtype
        assert_within_budget(got, same, exact, EPSILON[dtype] * exact.abs().max().item(), name)


@st.composite
def groups(draw: Callable[..., Any]) -> tuple[list[int], list[list[int]], list[int], int]:
    """1 to 3 rows of 0 to 2 groups of any prefix and any branches, and a row length with or without padding."""
    group = st.tuples(st.integers(0, 20), st.lists(st.integers(0, 9), max_size=6))
    rows = draw(st.lists(st.lists(group, max_size=2), min_size=1, max_size=3))
    longest = max(sum(prefix + sum(branches) for prefix, branches in row) for row in rows)
    flat = [group for row in rows for group in row]
    lengths = [prefix for prefix, _ in flat], [branches for _, branches in flat]
    return *lengths, [len(row) for row in rows], longest + draw(st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(case=groups(), kv_heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 9))
def test_any_ragged_groups_equal_dense_attention(
    case: tuple[list[int], list[list[int]], list[int], int], kv_heads: int, seed: int
) -> None:
    prefixes, branches, per_row, length = case
    tensors = make_tensors((4, kv_heads), 5, len(per_row), length, seed)
    truth = run(reference.shared_prefix_attention, tensors, prefixes, branches, groups_per_row=per_row)
    ours = run(shared_prefix_attention, tensors, prefixes, branches, groups_per_row=per_row)
    for got, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


# One row; three; and three groups in one row with another in a second, where tokens are neighbours and where not.
@pytest.mark.parametrize("kernel", [EagerKernel(), RaggedFlashKernel()], ids=["eager", "ragged"])
@pytest.mark.parametrize("per_row", [[1], [1, 1, 1], [3], [2, 0, 1]], ids=str)
def test_other_kernels_equal_dense_attention(
    kernel: Kernel, per_row: list[int], ragged_ops: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_MAX_SCORES", 200)  # several chunks of queries
    with_kernel(monkeypatch, kernel)
    lengths = PREFIXES[: sum(per_row)], BRANCHES[: sum(per_row)]
    tensors = make_tensors(rows=len(per_row), length=50)
    truth = run(reference.shared_prefix_attention, tensors, *lengths, groups_per_row=per_row)
    ours = run(shared_prefix_attention, tensors, *lengths, groups_per_row=per_row)
    for got, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


def test_half_precision_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernel(monkeypatch, EagerKernel())
    tensors = make_tensors()
    truth = run(reference.shared_prefix_attention, tensors, PREFIXES, BRANCHES)
    narrow = [tensor.bfloat16() for tensor in tensors]
    plain = run(reference.shared_prefix_attention, narrow, PREFIXES, BRANCHES)
    for got, same, exact in zip(run(shared_prefix_attention, narrow, PREFIXES, BRANCHES), plain, truth, strict=True):
        assert_within_budget(got, same, exact, EPSILON[torch.bfloat16] * exact.abs().max().item())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_padding_is_not_read_and_gives_zero(bad: float) -> None:
    tensors = [tensor.float() for tensor in make_tensors()]
    clean = run(shared_prefix_attention, tensors, PREFIXES, BRANCHES)
    used = [prefix + sum(branches) for prefix, branches in zip(PREFIXES, BRANCHES, strict=True)]
    for tensor in tensors:
        for row, start in enumerate(used):
            tensor[row, :, start:] = bad
    for got, expected in zip(run(shared_prefix_attention, tensors, PREFIXES, BRANCHES), clean, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        assert all(not got[row, :, start:].any() for row, start in enumerate(used))


def test_a_bad_gradient_of_padding_does_not_leak() -> None:
    query, key, value = (tensor.float().requires_grad_() for tensor in make_tensors())
    out = shared_prefix_attention(query, key, value, PREFIXES, BRANCHES)
    grad = torch.ones_like(out)
    grad[1, :, 9:] = float("nan")
    assert all(tensor.isfinite().all() for tensor in torch.autograd.grad(out, (query, key, value), grad))


def test_strides_do_not_matter() -> None:
    """As models hand them over, [P, L, H, D] transposed, and with a head whose numbers lie apart in memory."""
    tensors = [tensor.float() for tensor in make_tensors()]
    expected = run(shared_prefix_attention, tensors, PREFIXES, BRANCHES)
    for order in ((0, 2, 1, 3), (3, 0, 1, 2)):
        back = [order.index(axis) for axis in range(4)]
        leaves = [tensor.permute(order).contiguous().permute(back).requires_grad_() for tensor in tensors]
        out = shared_prefix_attention(*leaves, PREFIXES, BRANCHES)
        assert out.transpose(1, 2).is_contiguous()
        torch.testing.assert_close(out, expected[0])
        # a gradient without strides of its own
        plain = [tensor.clone().requires_grad_() for tensor in tensors]
        shared_prefix_attention(*plain, PREFIXES, BRANCHES).sum().backward()
        out.sum().backward()
        for got, other in zip(leaves, plain, strict=True):
            torch.testing.assert_close(got.grad, other.grad)


@pytest.mark.parametrize(("rows", "length"), [(0, 4), (2, 0), (2, 3)])
def test_nothing_to_attend_to(rows: int, length: int) -> None:
    tensors = make_tensors((2, 1), 4, rows, length)
    out, *grads = run(shared_prefix_attention, tensors, [0] * rows, [[]] * rows)
    assert out.shape == tensors[0].shape
    assert not any(tensor.any() for tensor in (out, *grads))


def test_gradcheck() -> None:
    leaves = [tensor.requires_grad_() for tensor in make_tensors((2, 1), 3, 2, 9)]

    def attention(*tensors: Tensor) -> Tensor:
        return shared_prefix_attention(*tensors, [4, 2], [[3, 2], [2, 2, 1]])

    assert torch.autograd.gradcheck(attention, leaves)


def test_opcheck_and_compile() -> None:
    query, key, value = (tensor.float().requires_grad_() for tensor in make_tensors())
    for tensors in (
        (query, key, value),
        [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)],
    ):
        arguments = (*tensors, flat_layout(PREFIXES, BRANCHES, [1, 1, 1]), 0.3)
        torch.library.opcheck(torch.ops.zoomzero.shared_prefix_attention.default, arguments)

    def total(*tensors: Tensor, lengths: list[int]) -> Tensor:
        return shared_prefix_attention(*tensors, lengths, BRANCHES).square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for lengths in (
        PREFIXES,
        [9, 7, 1],
        [10, 8, 2],
    ):  # the second prompt makes the lengths symbols, the third uses them
        expected = torch.autograd.grad(total(query, key, value, lengths=lengths), (query, key, value))
        got = torch.autograd.grad(compiled(query, key, value, lengths=lengths), (query, key, value))
        torch.testing.assert_close(got, expected)


def test_autocast_takes_mixed_dtypes() -> None:
    """Models turn query and key in float32 and project value in bfloat16."""
    query, key, value = (tensor.float() for tensor in make_tensors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = shared_prefix_attention(query, key, value.bfloat16(), PREFIXES, BRANCHES)
    expected = shared_prefix_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), PREFIXES, BRANCHES)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    """The largest number of elements that any op returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("kernel", [CpuFlashKernel(), EagerKernel()], ids=["flash", "eager"])
def test_holds_nothing_quadratic_and_repeats_no_keys(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "_MAX_SCORES", 1 << 14)
    tensors = [tensor.float() for tensor in make_tensors((8, 1), 4, 1, 1500)]
    inputs, blocks = Inputs(*tensors, 0.5), blocks_of([1, 1100, 4, *[100] * 4])
    with LargestTensor() as largest:
        out, sums = merged.forward(kernel, inputs, blocks)
        merged.backward(kernel, inputs, Results(torch.ones_like(out), out, sums), blocks)
    assert largest.elements <= tensors[0].numel()


def test_the_schemas_fit_this_torch() -> None:
    """The canary: a release that changes torch's private kernels shows here, before it shows in speed."""
    assert flash.cpu_flash_fits()
    assert all(flash._callable(name, call) for name, call in flash._CUDA_CALLS.items())
    info = build_info()["shared_prefix_attention"]
    assert info == {"cpu": "flash", "cuda": "flash" if torch.version.cuda else "eager"}


# A renamed op, arguments in another order, an argument that is now demanded, one result fewer.
@pytest.mark.parametrize(
    ("name", "positional", "num_results"),
    [
        ("_scaled_dot_product_flash_attention_for_gpu", "query key value dropout_p is_causal", 2),
        ("_scaled_dot_product_flash_attention_for_cpu", "key query value dropout_p is_causal", 2),
        ("_scaled_dot_product_flash_attention_for_cpu", "query key", 2),
        ("_scaled_dot_product_flash_attention_for_cpu", "query key value", 3),
    ],
)
def test_a_changed_schema_is_seen(name: str, positional: str, num_results: int) -> None:
    assert flash._callable(name, flash._Call("query key value", 2)) == name.endswith("cpu")
    assert not flash._callable(name, flash._Call(positional, num_results))


def test_a_kernel_that_does_not_fit_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (tensor.float() for tensor in make_tensors())
    expected = shared_prefix_attention(query, key, value, PREFIXES, BRANCHES)
    monkeypatch.setattr(flash, "cpu_flash_fits", lambda: False)
    assert flash.kernel_for(query).name == "eager"
    assert build_info()["shared_prefix_attention"]["cpu"] == "eager"
    torch.testing.assert_close(shared_prefix_attention(query, key, value, PREFIXES, BRANCHES), expected)


def _lengths(**change: Any) -> dict[str, Any]:
    tensors = dict(zip(("query", "key", "value"), (x.float() for x in make_tensors()), strict=True))
    return {**tensors, "prefix_lengths": PREFIXES, "branch_lengths": BRANCHES, **change}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.zeros(6, 22, 8)}, ValueError, r"query must be \[P, heads, L, D\], got \[6, 22, 8\]"),
        ({"query": torch.zeros(3, 6, 22, 8).long()}, TypeError, "query must be float32, .* got torch.int64"),
        ({"value": torch.zeros(3, 2, 22, 8).half()}, TypeError, "value must have query's dtype torch.float32"),
        ({"key": torch.zeros(3, 2, 22, 8, device="meta")}, ValueError, "key must be on query's device cpu, got meta"),
        ({"key": torch.zeros(3, 4, 22, 8)}, ValueError, r"key must be \[3, Hkv, 22, 8\] with Hkv dividing the 6 heads"),
        ({"key": torch.zeros(3, 2, 21, 8)}, ValueError, r"key must be \[3, Hkv, 22, 8\].* got \[3, 2, 21, 8\]"),
        ({"value": torch.zeros(3, 3, 22, 8)}, ValueError, r"value must have key's shape \[3, 2, 22, 8\]"),
        ({"query": torch.zeros(3, 6, 22, 0)}, ValueError, "head size D must be at least 1"),
        ({"prefix_lengths": torch.tensor(PREFIXES)}, TypeError, "prefix_lengths must be a list, got a tensor"),
        ({"prefix_lengths": [11, 7]}, ValueError, "prefix_lengths must have one entry per group, 3, got 2"),
        ({"branch_lengths": BRANCHES[:2]}, ValueError, "branch_lengths must have one entry per group, 3, got 2"),
        (
            {"branch_lengths": [4, 2, 5]},
            TypeError,
            "branch_lengths must be a list of lists of ints, got int for group 0",
        ),
        ({"prefix_lengths": [11.0, 7, 0]}, TypeError, "lengths must be ints, got float in group 0"),
        ({"branch_lengths": [[4], [-2], [5]]}, ValueError, "lengths must be >= 0, got -2 in group 1"),
        ({"branch_lengths": [[4], [2], [5, 18]]}, ValueError, r"fit into the row of 22 places, got 23 in row 2"),
        ({"groups_per_row": [3]}, ValueError, "groups_per_row must have one entry per packed row, 3, got 1"),
        ({"groups_per_row": [2, 1, 1]}, ValueError, "prefix_lengths must have one entry per group, 4, got 3"),
        ({"groups_per_row": [3, 0, 0]}, ValueError, "fit into the row of 22 places, got 45 in row 0"),
        ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"shared_prefix_attention: .*{message}"):
        shared_prefix_attention(**_lengths(**change))


# What ragged flash takes, and what goes to plain torch: float32, and a head size that 8 does not divide.
@pytest.mark.cuda
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 64), (torch.float16, 128), (torch.float32, 16), (torch.bfloat16, 13)]
)
def test_on_the_gpu(dtype: torch.dtype, size: int) -> None:
    tensors = make_tensors(size=size)
    truth = run(reference.shared_prefix_attention, tensors, PREFIXES, BRANCHES)
    narrow = [tensor.to("cuda", dtype) for tensor in tensors]
    plain = run(reference.shared_prefix_attention, [x.cpu() for x in narrow], PREFIXES, BRANCHES)

    def ours(*arguments: Any) -> Tensor:
        return shared_prefix_attention(*arguments).cpu()

    for got, same, exact in zip(run(ours, narrow, PREFIXES, BRANCHES), plain, truth, strict=True):
        assert_within_budget(got.cpu(), same, exact, EPSILON[dtype] * exact.abs().max().item())
