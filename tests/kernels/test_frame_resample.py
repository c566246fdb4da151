"""frame_resample against torchvision, transformers and the reference."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.frames import MEAN, NORMALISED, RAW, SHAPES, STD, random_frames, strided_views
from support.places import TESTS
from torch import Tensor

from zoomzero_kernels import _C, frame_resample, reference
from zoomzero_kernels.frame_resample_arguments import default_dtype


@pytest.mark.parametrize(("source", "size"), SHAPES)
def test_equals_torchvision_to_the_last_bit(source: tuple[int, int], size: tuple[int, int]) -> None:
    torchvision = pytest.importorskip("torchvision.transforms.v2.functional")
    frames = random_frames(2, *source, 3)
    ours = frame_resample(frames, size=size, layout="tchw", **RAW)
    bicubic = torchvision.InterpolationMode.BICUBIC
    theirs = torchvision.resize(frames.permute(0, 3, 1, 2), list(size), interpolation=bicubic, antialias=True)
    assert torch.equal(ours, theirs.float())


@pytest.mark.parametrize(("source", "size"), SHAPES)
@pytest.mark.parametrize("layout", ["patches", "tchw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_reference(source: tuple[int, int], size: tuple[int, int], layout: str, dtype: torch.dtype) -> None:
    frames = random_frames(3, *source, 3)
    indices = torch.tensor([2, 0, 0])
    ours = frame_resample(frames, indices, size=size, layout=layout, dtype=dtype, **NORMALISED)
    truth = reference.frame_resample(frames, indices, size=size, layout=layout, dtype=torch.float64, **NORMALISED)
    assert ours.dtype == dtype
    assert ours.shape == truth.shape
    # 2 float32 roundings of values up to 2.7 ahead of one rounding to the output type
    error = (ours.double() - truth).abs()
    assert (error <= truth.abs() * torch.finfo(dtype).eps + 5e-7).all()


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4])
@pytest.mark.parametrize("temporal_patch_size", [1, 2, 3])
@pytest.mark.parametrize(("patch_size", "merge_size"), [(14, 2), (16, 2), (8, 1), (7, 3)])
def test_patch_order(num_frames: int, temporal_patch_size: int, patch_size: int, merge_size: int) -> None:
    side = patch_size * merge_size
    frames = random_frames(num_frames, 40, 50, 3)
    layout: dict[str, Any] = {
        "patch_size": patch_size,
        "merge_size": merge_size,
        "temporal_patch_size": temporal_patch_size,
    }
    ours = frame_resample(frames, size=(side, 2 * side), **layout, **RAW)
    truth = reference.frame_resample(frames, size=(side, 2 * side), **layout, **RAW)
    assert torch.equal(ours, truth)


@pytest.mark.parametrize("name", strided_views())
def test_strides(name: str) -> None:
    frames = strided_views()[name]
    ours = frame_resample(frames, size=(28, 56), **NORMALISED)
    assert torch.equal(ours, frame_resample(frames.contiguous(), size=(28, 56), **NORMALISED))


def test_empty_index_list_gives_no_rows() -> None:
    frames = random_frames(2, 30, 30, 3)
    none = torch.empty(0, dtype=torch.int64)
    assert frame_resample(frames, none, size=(28, 56), **RAW).shape == (0, 1176)
    assert frame_resample(frames, none, size=(30, 31), layout="tchw", **RAW).shape == (0, 3, 30, 31)
    assert frame_resample(frames[:0], size=(28, 28), **RAW).shape == (0, 1176)


def test_threads_that_ask_at_the_same_time_share_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code has the tables' addresses: a second thread must not replace, and so free, what a first one reads."""
    from zoomzero_kernels.frame_resample import axis_tables

    both_make, native = threading.Barrier(2, timeout=30), _C.bicubic_axis

    def made_together(*arguments: int) -> tuple[bytes, bytes, bytes, int, int]:
        both_make.wait()
        return native(*arguments)

    monkeypatch.setattr(_C, "bicubic_axis", made_together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: axis_tables(977, 61, torch.device("cpu"), 4), range(2))
    assert first is second is axis_tables(977, 61, torch.device("cpu"), 4)


def test_result_does_not_depend_on_threads() -> None:
    frames = random_frames(3, 90, 120, 3)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(frame_resample(frames, size=(84, 56), **NORMALISED))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Prints a digest of results over all shapes, layouts and types: the same on every instruction set.
DIGEST_PROGRAM = """
import hashlib, os, torch
from zoomzero_kernels import build_info, frame_resample
from support.frames import NORMALISED, SHAPES, random_frames, strided_views
digest = hashlib.sha256()
for source, size in SHAPES:
    for layout in ("patches", "tchw"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for frames in (random_frames(3, *source, 3), random_frames(3, 3, *source).permute(0, 2, 3, 1)):
                out = frame_resample(frames, size=size, layout=layout, dtype=dtype, **NORMALISED)
                digest.update(out.view(torch.uint8).numpy().tobytes())
large = random_frames(2, 500, 700, 3)  # an output large enough to be written past the caches
digest.update(frame_resample(large, size=(1400, 1400), **NORMALISED).numpy().tobytes())
print(build_info()["cpu_capability"], digest.hexdigest())
"""


def test_instruction_sets_agree() -> None:
    results: dict[str, str] = {}
    for wanted in ("DEFAULT", "AVX2", "AVX512"):
        environment = {**os.environ, "ZOOMZERO_CPU_CAPABILITY": wanted, "PYTHONPATH": str(TESTS)}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST_PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        chosen, digest = done.stdout.split()
        results[chosen] = digest  # a processor without the wanted set falls back to DEFAULT
    assert "DEFAULT" in results
    assert len(set(results.values())) == 1


def test_opcheck() -> None:
    frames = random_frames(3, 30, 40, 3)
    for indices in (None, torch.tensor([2, 1])):
        for patches in ([14, 2, 2], [0, 1, 1]):
            arguments = (frames, indices, [28, 28], [*MEAN, *STD], patches)
            torch.library.opcheck(torch.ops.zoomzero.frame_resample.default, (*arguments, torch.bfloat16))
            out = torch.ops.zoomzero.frame_resample(*arguments, torch.bfloat16)
            torch.library.opcheck(torch.ops.zoomzero.frame_resample_.default, (out, *arguments))


def test_writes_in_place() -> None:
    frames = random_frames(5, 40, 50, 3)
    expected = frame_resample(frames, size=(28, 56), **NORMALISED)
    out = torch.full_like(expected, torch.nan)
    rows = len(expected) // 3
    part = frame_resample(frames[:4], size=(28, 56), out=out[: 2 * rows], **NORMALISED)
    assert part.data_ptr() == out.data_ptr()
    assert out[2 * rows :].isnan().all()
    frame_resample(frames[4:], size=(28, 56), out=out[2 * rows :], **NORMALISED)
    assert torch.equal(out, expected)
    half = torch.empty_like(expected, dtype=torch.bfloat16)
    assert frame_resample(frames, size=(28, 56), out=half, **NORMALISED) is half
    with pytest.raises(ValueError, match=r"out must be \[24, 1176\], got \[23, 1176\]; take a slice"):
        frame_resample(frames, size=(28, 56), out=out[:-1], **NORMALISED)
    with pytest.raises(ValueError, match=r"out must be a contiguous .* torch\.float32 on cpu, got torch\.bfloat16"):
        frame_resample(frames, size=(28, 56), out=half, dtype=torch.float32, **NORMALISED)


def test_compiles_without_graph_breaks() -> None:
    def model(frames: Tensor, indices: Tensor) -> Tensor:
        return frame_resample(frames, indices, size=(28, 56), **NORMALISED).square().sum(0)

    frames, indices = random_frames(4, 31, 45, 3), torch.tensor([3, 1, 1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(frames, indices), model(frames, indices))


@pytest.mark.cuda
@pytest.mark.parametrize(("source", "size"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_cpu(source: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> None:
    frames, indices = random_frames(3, *source, 3), torch.tensor([2, 0, 1])
    for layout in ("patches", "tchw"):
        on_cpu = frame_resample(frames, indices, size=size, layout=layout, dtype=dtype, **NORMALISED)
        on_gpu = frame_resample(frames.cuda(), indices, size=size, layout=layout, dtype=dtype, **NORMALISED)
        assert torch.equal(on_gpu.cpu(), on_cpu)


CHANNELS_FIRST = random_frames(2, 3, 30, 40)
GOOD: dict[str, Any] = {"size": (28, 28), **NORMALISED}
# Every message names the rule, what came and what to do; matched on the rule and the value.
BAD_ARGUMENTS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, r"must be a torch tensor, got list", {"frames": [1]}),
    (TypeError, r"must be uint8 \[N, H, W, 3\], got float32 \[2, 30, 40, 3\]", {"frames": torch.zeros(2, 30, 40, 3)}),
    (ValueError, r"must be uint8 \[N, H, W, 3\], got uint8 \[30, 40, 3\]", {"frames": random_frames(30, 40, 3)}),
    (ValueError, r"got uint8 \[2, 3, 30, 40\]; permute", {"frames": random_frames(2, 3, 30, 40)}),
    (
        ValueError,
        r"frame sides must be between 1 and 65536, got uint8 \[2, 0, 40, 3\]",
        {"frames": random_frames(2, 0, 40, 3)},
    ),
    (
        ValueError,
        r"frame sides must be .* got uint8 \[1, 1, 70000, 3\]",
        {"frames": torch.zeros(1, dtype=torch.uint8).expand(1, 1, 70000, 3)},
    ),
    (
        TypeError,
        r"frame_indices must be an int64 tensor, got torch.int32",
        {"frame_indices": torch.tensor([1], dtype=torch.int32)},
    ),
    (TypeError, r"frame_indices must be an int64 tensor, got list", {"frame_indices": [1]}),
    (ValueError, r"frame_indices must be int64 \[n\], got shape \[1, 1\]", {"frame_indices": torch.tensor([[1]])}),
    (ValueError, r"between 0 and 1, got values from -1 to 0", {"frame_indices": torch.tensor([0, -1])}),
    (ValueError, r"between 0 and 1, got values from 0 to 2", {"frame_indices": torch.tensor([0, 2])}),
    (
        ValueError,
        r"frame_indices must be empty where there is no frame, got 2 of them",
        {"frames": random_frames(0, 30, 40, 3), "frame_indices": torch.tensor([0, 0])},
    ),
    (
        ValueError,
        r"frames' device or the CPU, got meta",
        {"frame_indices": torch.empty(1, dtype=torch.int64, device="meta")},
    ),
    (ValueError, r"multiples of patch_size \* merge_size = 28, got \(30, 41\); use \(28, 28\)", {"size": (30, 41)}),
    (ValueError, r"size must be \(out_h, out_w\) between 1 and 65536, got \(0, 28\)", {"size": (0, 28)}),
    (ValueError, r"size must be .* got \(28, 1000000\)", {"size": (28, 1_000_000)}),
    (ValueError, r"size must hold 2 numbers, got \(28,\)", {"size": (28,)}),
    (ValueError, r"size must hold 2 numbers, got 28", {"size": 28}),
    (ValueError, r"mean must hold 3 numbers", {"mean": (0.5,)}),
    (ValueError, r"std must hold 3 numbers", {"std": (0.5, 0.5)}),
    (ValueError, r"std not zero, got .*0.0", {"std": (0.5, 0.0, 0.5)}),
    (ValueError, r"must be finite", {"mean": (0.5, float("nan"), 0.5)}),
    (TypeError, r"size must be of integers, got 28.0", {"size": (28.0, 28)}),
    (
        TypeError,
        r"dtype must be a torch.dtype, got 'float32'",
        {"layout": "tchw", "dtype": "float32"},
    ),
    (ValueError, r"layout must be one of .* got 'nchw'", {"layout": "nchw"}),
    (ValueError, r"patch_size must be between 1 and 1024, got 0", {"patch_size": 0}),
    (ValueError, r"temporal_patch_size must be between 1 and 1024, got -2", {"temporal_patch_size": -2}),
    (TypeError, r"dtype must be one of .* got torch.float64", {"dtype": torch.float64}),
    (
        ValueError,
        r"too large to address",
        {"frames": random_frames(1, 1, 1, 3).expand(2**40, 1, 1, 3), "size": (56000, 56000)},
    ),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD_ARGUMENTS, ids=[case[1][:40] for case in BAD_ARGUMENTS])
def test_bad_arguments(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    arguments = {"frames": random_frames(2, 30, 40, 3), "frame_indices": None, **GOOD, **change}
    with pytest.raises(error, match="frame_resample: .*" + message):
        frame_resample(arguments.pop("frames"), arguments.pop("frame_indices"), **arguments)


def test_patches_of_frames_on_a_gpu_are_bfloat16_unless_told() -> None:
    assert default_dtype(torch.device("cuda:1")) == torch.bfloat16
    assert frame_resample(random_frames(1, 28, 28, 3), size=(28, 28), **NORMALISED).dtype == torch.float32
