"""The compiled CUDA kernel of frame_resample, run without a GPU, against the CPU."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.compiled_kernels import COMPILERS, CompiledKernels, compiled_kernels, nvcc_ptx, of_module
from support.frames import NORMALISED, random_frames, strided_views
from support.late_copies import late_copy_module
from torch import Tensor

from zoomzero_kernels import _C, frame_resample


def run_compiled_kernel(
    kernels: CompiledKernels, order: int, frames: Tensor, indices: Tensor | None, **options: Any
) -> Tensor:
    """The compiled CUDA kernel on the CPU, with the very parameters that a launch on a GPU would get."""
    from zoomzero_kernels.frame_resample import axis_tables, native_params

    layout, size = options["layout"], options["size"]
    expected = frame_resample(frames, indices, **options)
    out = torch.full_like(expected, float("nan"))
    patches = (0, 1, 1) if layout == "tchw" else (14, 2, 2)
    native = native_params(frames, indices, out, size, [*options["mean"], *options["std"]], patches, 1)
    launch = _C.frame_resample_launch(native, 1)
    assert launch.shared_bytes > 0
    sides = zip(frames.shape[1:3], size, strict=True)
    tables = [table for side in sides for table in axis_tables(*side, frames.device, 1)[:3]]
    kernels.launch(launch, order, [frames, out, *tables, *([] if indices is None else [indices])])
    return out


# Small shapes that reach every tail: (source, size, layout). Strips that end early, ratio 30 with narrow bands,
# upsampling.
KERNEL_SHAPES = [
    ((33, 47), (28, 56), "patches"),
    ((20, 18), (56, 84), "patches"),
    ((64, 300), (28, 140), "patches"),
    ((420, 433), (28, 28), "patches"),
    ((41, 150), (19, 131), "tchw"),
    ((700, 30), (3, 5), "tchw"),
]


@pytest.fixture(scope="module", params=COMPILERS, ids="-".join)
def kernel(
    request: pytest.FixtureRequest, ptxhost: ModuleType, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> CompiledKernels:
    return compiled_kernels(ptxhost, checkout, "frame_resample", request.param, tmp_path_factory.mktemp("ptx"))


@pytest.mark.parametrize(("source", "size", "layout"), KERNEL_SHAPES)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_compiled_kernel_equals_cpu(
    kernel: CompiledKernels, order: int, source: tuple[int, int], size: tuple[int, int], layout: str
) -> None:
    frames, indices = random_frames(3, *source, 3), torch.tensor([2, 0, 0])
    options: dict[str, Any] = {"size": size, "layout": layout, **NORMALISED}
    assert torch.equal(
        run_compiled_kernel(kernel, order, frames, indices, **options), frame_resample(frames, indices, **options)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", strided_views())
def test_compiled_kernel_strides(kernel: CompiledKernels, name: str, dtype: torch.dtype) -> None:
    frames = strided_views()[name]
    options: dict[str, Any] = {"size": (28, 56), "layout": "patches", "dtype": dtype, **NORMALISED}
    assert torch.equal(run_compiled_kernel(kernel, 2, frames, None, **options), frame_resample(frames, None, **options))


# (420, 433) goes through both buffers many times.
@pytest.mark.parametrize(("source", "size", "layout"), [KERNEL_SHAPES[0], KERNEL_SHAPES[3]])
def test_every_use_of_an_asynchronous_copy_stands_behind_its_wait(
    ptxhost: ModuleType,
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: tuple[int, int],
    size: tuple[int, int],
    layout: str,
) -> None:
    frames = random_frames(2, *source, 3)
    options: dict[str, Any] = {"size": size, "layout": layout, **NORMALISED}
    expected = frame_resample(frames, None, **options)
    ptx = nvcc_ptx(checkout, "frame_resample", "90", tmp_path)
    assert "cp.async.cg.shared.global" in ptx
    late = of_module(late_copy_module(ptxhost, ptx, monkeypatch))
    for order in (0, 1, 2):
        assert torch.equal(run_compiled_kernel(late, order, frames, None, **options), expected)
    # What stands behind no wait is found: without waiting nothing ever lands.
    assert ptx.count("cp.async.wait_all;") == 3  # one a type
    never = of_module(late_copy_module(ptxhost, ptx.replace("cp.async.wait_all;", ""), monkeypatch))
    assert not torch.equal(run_compiled_kernel(never, 0, frames, None, **options), expected)


def test_compiled_kernel_shows_a_bad_index_as_nan(kernel: CompiledKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, indices = random_frames(2, 30, 30, 3), torch.tensor([0, 1, 1])
    options: dict[str, Any] = {"size": (28, 28), "layout": "tchw", **NORMALISED}
    expected = frame_resample(frames, indices, **options)

    make_launch = _C.frame_resample_launch

    def launch_with_bad_indices(*arguments: Any) -> Any:
        indices[0], indices[2] = -1, 2
        return make_launch(*arguments)

    monkeypatch.setattr(_C, "frame_resample_launch", launch_with_bad_indices)
    out = run_compiled_kernel(kernel, 0, frames, indices, **options)
    assert torch.equal(out[1], expected[1])
    assert out[0].isnan().all()
    assert out[2].isnan().all()
