"""token_resample against the reference in float64, torch's pooling, and its own compiled CUDA kernel."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.compiled_kernels import COMPILERS, CompiledKernels, compiled_kernels
from torch import Tensor

from zoomzero_kernels import _C, reference, token_resample
from zoomzero_kernels.token_resample import _slice_sides, _slice_table, device_tables, native_params

# (grid_thw, target_hw): pooling by whole ratios, odd ratios, one axis each way, upsampling, to one token, several
# videos.
GRIDS = [
    ([[1, 4, 6]], [[2, 3]]),
    ([[2, 5, 7]], [[3, 4], [2, 7]]),
    ([[1, 3, 4]], [[3, 4]]),
    ([[1, 3, 2]], [[7, 5]]),
    ([[1, 9, 8]], [[1, 1]]),
    ([[2, 4, 4], [1, 1, 1], [1, 5, 3]], [[2, 2], [4, 1], [3, 3], [2, 6]]),
]
# One channel, an unaligned tail, whole vectors, more than one block of channels.
WIDTHS = [1, 5, 64, 1100]


def make_case(grid: list[list[int]], target: list[list[int]], width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    grid_thw, target_hw = torch.tensor(grid), torch.tensor(target)
    generator = torch.Generator().manual_seed(width)
    tokens = torch.randn(int(grid_thw.prod(1).sum()), width, generator=generator)
    return tokens.to(dtype), grid_thw, target_hw


def assert_within_budget(ours: Tensor, same_dtype: Tensor, truth: Tensor) -> None:
    """|ours - truth| <= 2 |reference in our dtype - truth| + one rounding."""
    eps = torch.finfo(ours.dtype).eps
    budget = 2 * (same_dtype.double() - truth).abs() + eps * truth.abs() + 4 * torch.finfo(torch.float32).eps
    assert ((ours.double() - truth).abs() <= budget).all()


@pytest.mark.parametrize(("grid", "target"), GRIDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_and_backward(grid: list[list[int]], target: list[list[int]], width: int, dtype: torch.dtype) -> None:
    tokens, grid_thw, target_hw = make_case(grid, target, width, dtype)
    results = []
    cases = ((token_resample, dtype), (reference.token_resample, dtype), (reference.token_resample, torch.float64))
    for function, kind in cases:
        x = tokens.to(kind).detach().clone().requires_grad_()
        out = function(x, grid_thw, target_hw)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(out.dtype)
        out.backward(weights)
        assert x.grad is not None
        results.append((out.detach(), x.grad))
    (ours, ours_grad), (same, same_grad), (truth, truth_grad) = results
    assert ours.dtype == dtype
    assert ours.shape == truth.shape
    assert_within_budget(ours, same, truth)
    assert_within_budget(ours_grad, same_grad, truth_grad)


def test_whole_ratios_are_average_pooling() -> None:
    tokens, grid_thw, target_hw = make_case([[1, 26, 46]], [[13, 23]], 8, torch.float32)
    pooled = torch.nn.functional.adaptive_avg_pool2d(tokens.T.view(8, 26, 46), (13, 23)).reshape(8, -1).T
    torch.testing.assert_close(token_resample(tokens, grid_thw, target_hw), pooled)


def test_same_grid_copies() -> None:
    tokens, grid_thw, target_hw = make_case([[2, 5, 3]], [[5, 3], [5, 3]], 7, torch.bfloat16)
    assert torch.equal(token_resample(tokens, grid_thw, target_hw), tokens)


def test_constant_stays_constant_and_gradient_mass_is_kept() -> None:
    _, grid_thw, target_hw = make_case([[1, 7, 11]], [[3, 4]], 1, torch.float32)
    tokens = torch.full((77, 3), 2.5, requires_grad=True)
    out = token_resample(tokens, grid_thw, target_hw)
    torch.testing.assert_close(out, torch.full((12, 3), 2.5))
    out.sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad.sum(0), torch.full((3,), 12.0))


def test_nothing_leaks_between_slices() -> None:
    tokens, grid_thw, target_hw = make_case([[3, 4, 4]], [[2, 2]] * 3, 6, torch.float32)
    tokens[16:32] = float("nan")
    out = token_resample(tokens, grid_thw, target_hw)
    assert out[:4].isfinite().all()
    assert out[4:8].isnan().all()
    assert out[8:].isfinite().all()


def test_strided_tokens_and_empty_input() -> None:
    tokens, grid_thw, target_hw = make_case([[1, 4, 6]], [[2, 3]], 10, torch.float32)
    expected = token_resample(tokens[:, ::2].contiguous(), grid_thw, target_hw)
    assert torch.equal(token_resample(tokens[:, ::2], grid_thw, target_hw), expected)
    nothing = token_resample(torch.empty(0, 8), grid_thw[:0], target_hw[:0])
    assert nothing.shape == (0, 8)
    assert token_resample(torch.empty(24, 0), grid_thw, target_hw).shape == (6, 0)


def test_result_does_not_depend_on_threads() -> None:
    tokens, grid_thw, target_hw = make_case([[3, 9, 8]], [[4, 5]] * 3, 50, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = token_resample(tokens, grid_thw, target_hw)
        torch.set_num_threads(4)
        assert torch.equal(token_resample(tokens, grid_thw, target_hw), alone)
    finally:
        torch.set_num_threads(threads)


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tokens, grid_thw, target_hw = make_case([[2, 5, 7]], [[3, 4], [2, 7]], 5, dtype)
        arguments = (tokens.requires_grad_(), grid_thw, target_hw)
        torch.library.opcheck(torch.ops.zoomzero.token_resample.default, arguments)
        grad = torch.randn(26, 5).to(dtype)
        torch.library.opcheck(torch.ops.zoomzero.token_resample_backward.default, (grad, grid_thw, target_hw, 70))


def test_compiles_without_graph_breaks() -> None:
    def model(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
        return token_resample(tokens, grid_thw, target_hw).square().sum()

    tokens, grid_thw, target_hw = make_case([[2, 5, 7]], [[3, 4], [2, 7]], 5, torch.float32)
    eager, compiled = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    model(eager, grid_thw, target_hw).backward()
    torch.compile(model, fullgraph=True, backend="aot_eager")(compiled, grid_thw, target_hw).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.cuda
@pytest.mark.parametrize(("grid", "target"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_matches_cpu(grid: list[list[int]], target: list[list[int]], dtype: torch.dtype) -> None:
    tokens, grid_thw, target_hw = make_case(grid, target, 64, dtype)
    gradients = []
    for device in ("cpu", "cuda"):
        x = tokens.to(device).detach().clone().requires_grad_()
        out = token_resample(x, grid_thw, target_hw)
        out.backward(torch.ones_like(out))
        assert x.grad is not None
        gradients.append((out.detach().cpu(), x.grad.cpu()))
    torch.testing.assert_close(gradients[1], gradients[0])


BAD_ARGUMENTS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "tokens must be a torch tensor, got list", {"tokens": [1.0]}),
    (TypeError, "tokens must be one of .* got torch.float64", {"tokens": torch.zeros(24, 4, dtype=torch.float64)}),
    (ValueError, r"tokens must be \[sum\(t\*h\*w\), D\], got shape \[24\]", {"tokens": torch.zeros(24)}),
    (TypeError, "grid_thw must be int64, got torch.int32", {"grid_thw": torch.tensor([[1, 4, 6]], dtype=torch.int32)}),
    (ValueError, r"grid_thw must be \[n, 3\], got shape \[3\]", {"grid_thw": torch.tensor([1, 4, 6])}),
    (ValueError, r"target_hw must be \[n, 2\], got shape \[1, 3\]", {"target_hw": torch.tensor([[1, 2, 3]])}),
    (ValueError, "grid_thw must hold values between 1 and 32768, got 0 to 6", {"grid_thw": torch.tensor([[1, 0, 6]])}),
    (ValueError, "target_hw must hold values .* got -1 to 2", {"target_hw": torch.tensor([[-1, 2]])}),
    (ValueError, "target_hw must hold values .* got 2 to 2147483648", {"target_hw": torch.tensor([[2, 2**31]])}),
    (ValueError, "one row for each of the 1 temporal slices .* got 2", {"target_hw": torch.tensor([[2, 2], [2, 2]])}),
    (ValueError, r"sum\(t\*h\*w\) = 20 rows, got 24", {"grid_thw": torch.tensor([[1, 4, 5]])}),
    (ValueError, "tokens must be on cpu or cuda, got meta", {"tokens": torch.zeros(24, 4, device="meta")}),
    (
        ValueError,
        "target_hw must be on the CPU or the tokens' device, got meta",
        {"target_hw": torch.tensor([[2, 3]], device="meta")},
    ),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD_ARGUMENTS, ids=[case[1][:40] for case in BAD_ARGUMENTS])
def test_bad_arguments(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    tokens, grid_thw, target_hw = make_case([[1, 4, 6]], [[2, 3]], 4, torch.float32)
    arguments = {"tokens": tokens, "grid_thw": grid_thw, "target_hw": target_hw, **change}
    with pytest.raises(error, match=f"token_resample: .*{message}"):
        token_resample(**arguments)


@pytest.fixture(scope="module", params=COMPILERS, ids="-".join)
def kernel(
    request: pytest.FixtureRequest, ptxhost: ModuleType, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> CompiledKernels:
    return compiled_kernels(ptxhost, checkout, "token_resample", request.param, tmp_path_factory.mktemp("ptx"))


@pytest.mark.parametrize(("grid", "target"), GRIDS)
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [5, 64])  # one element at a time, and 16 bytes at a time
def test_compiled_kernel(
    kernel: CompiledKernels, order: int, grid: list[list[int]], target: list[list[int]], dtype: torch.dtype, width: int
) -> None:
    tokens, grid_thw, target_hw = make_case(grid, target, width, dtype)
    source, targets = _slice_sides(grid_thw, target_hw)
    grad = torch.ones(int(targets.prod(1).sum()), width).to(dtype) * 1.5
    for backward, values, sides in ((False, tokens, (source, targets)), (True, grad, (targets, source))):
        table = _slice_table(*sides)
        tables = device_tables(table, torch.device("cpu"))
        on_cpu = torch.empty(table.num_out, width, dtype=dtype)
        _C.token_resample_cpu(native_params(values, on_cpu, table, tables, backward=backward), 1)
        out = torch.full_like(on_cpu, float("nan"))
        launch = _C.token_resample_launch(native_params(values, out, table, tables, backward=backward))
        assert launch.kernel.endswith(f", {str(width % 8 == 0).lower()}>")
        assert tables.slice_of_token is not None
        kernel.launch(launch, order, [values, out, *tables])
        torch.testing.assert_close(out, on_cpu)
