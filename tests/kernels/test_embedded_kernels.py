"""The Triton kernels embedded in the native module: what they are, what their launch passes, and that it computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.grpo_cases import make_case
from support.kernel_launches import Expected, all_launches
from support.places import SUPPORT, TESTS
from support.recorded_driver import build_recording_driver

from zoomzero_kernels import _C, build_info, grpo_loss
from zoomzero_kernels.triton_kernels import launch
from zoomzero_kernels.triton_kernels.variants import compile_variant, row_variant, variants

ARCHITECTURES = launch.embedded_architectures()

needs_embedded = pytest.mark.skipif(not ARCHITECTURES, reason="this build embeds no Triton kernels")


@pytest.fixture
def no_line_info(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile as the build does: file names and lines would be part of the machine code."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.compilation, "disable_line_info", True)


@needs_embedded
def test_every_variant_is_embedded_for_every_architecture() -> None:
    wanted = {(variant.name, architecture) for variant in variants() for architecture in ARCHITECTURES}
    assert set(_C.EMBEDDED_KERNELS) == wanted
    assert [str(architecture) for architecture in ARCHITECTURES] == sorted(build_info()["cuda_archs"], key=int)


@needs_embedded
def test_embedded_code_is_what_triton_compiles(no_line_info: None) -> None:
    for variant in variants():
        compiled = compile_variant(variant, ARCHITECTURES[0])
        assert _C.embedded_kernel_image(variant.name, ARCHITECTURES[0]) == compiled.asm["cubin"], variant.name


@needs_embedded
def test_embedded_code_names_no_path() -> None:
    for variant, architecture in _C.EMBEDDED_KERNELS:
        image = _C.embedded_kernel_image(variant, architecture)
        assert image.startswith(b"\x7fELF")
        assert b".py" not in image, variant


_OLD_DRIVER = """
from zoomzero_kernels import build_info
from zoomzero_kernels.triton_kernels import launch
launch._has_triton = lambda: False
print(build_info()["driver_cuda"], launch.embedded_architecture((9, 0)), build_info()["triton_kernels"]["sm_90"])
launch._has_triton = lambda: True
print(launch.way((9, 0)), build_info()["triton_kernels"]["sm_90"])
"""


@needs_embedded
def test_under_a_driver_older_than_the_build_triton_compiles(tmp_path: Path) -> None:
    build_recording_driver(tmp_path)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), launch.OPTION: "embedded"}
    command = [sys.executable, "-c", _OLD_DRIVER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["12.8", "None", "none", "jit", "jit"], done.stderr


@pytest.mark.slow
@needs_embedded
@pytest.mark.skipif(90 not in ARCHITECTURES, reason="not built for sm_90")
def test_arguments_and_grid_are_those_of_tritons_launcher(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    build_recording_driver(tmp_path)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        launch.OPTION: "jit",
        "PYTHONPATH": str(TESTS),
    }
    command = [sys.executable, str(SUPPORT / "recorded_launches.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    agreed = {line.removeprefix("agrees ") for line in done.stdout.splitlines()}
    assert agreed == {variant.name for variant in variants()}


def run_ptx(ptxhost: ModuleType, expected: Expected, architecture: int, order: int) -> None:
    """Run the PTX behind the embedded machine code with the bytes that the embedded launch would pass."""
    variant, arguments = expected.launch.variant, expected.launch.arguments
    compiled = compile_variant(variant, architecture)
    assert compiled.asm["cubin"] == _C.embedded_kernel_image(variant.name, architecture)
    blocks, threads, shared_bytes, parameters = _C.packed_embedded_launch(
        variant.name, architecture, expected.launch.num_programs, expected.launch.plain_arguments()
    )
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    module = ptxhost.PtxModule(compiled.asm["ptx"])
    name = compiled.metadata.name
    module.launch(name, blocks, threads, parameters, smem=shared_bytes, order=order, extra=tensors)


@pytest.mark.slow
@needs_embedded
@pytest.mark.parametrize("architecture", [80, 90, 100])
# Ascending, descending and shuffled threads: a missing barrier shows as a difference.
@pytest.mark.parametrize("order", [0, 1, 2])
def test_embedded_ptx_computes(ptxhost: ModuleType, no_line_info: None, architecture: int, order: int) -> None:
    if architecture not in ARCHITECTURES:
        pytest.skip(f"not built for sm_{architecture}")
    for expected in all_launches():
        run_ptx(ptxhost, expected, architecture, order)
        for got, want in zip(expected.outputs, expected.truth, strict=True):
            torch.testing.assert_close(
                got,
                want,
                rtol=expected.tolerance,
                atol=expected.tolerance,
                msg=lambda text, name=expected.launch.variant.name: f"{name}: {text}",
            )


@needs_embedded
def test_a_wrong_launch_is_an_error() -> None:
    expected = next(all_launches())  # holds the tensors at whose addresses the arguments point
    arguments = expected.launch.plain_arguments()
    name, architecture = expected.launch.variant.name, ARCHITECTURES[0]
    with pytest.raises(ValueError, match="nothing is not embedded for sm_80"):
        _C.packed_embedded_launch("nothing", 80, 1, arguments)
    with pytest.raises(ValueError, match=r"must be given \d+ arguments, got 3; pass"):
        _C.packed_embedded_launch(name, architecture, 1, arguments[:3])
    with pytest.raises(ValueError, match=rf"must be given {len(arguments)} arguments, got {len(arguments) + 1};"):
        _C.packed_embedded_launch(name, architecture, 1, (*arguments, 1))
    for count in (0, 2**31):
        with pytest.raises(ValueError, match="must have 1 to 2\\^31 - 1 programs"):
            _C.packed_embedded_launch(name, architecture, count, arguments)


class TestDispatch:
    """Which way a GPU's launches take, with kernels embedded for 8.0, 9.0 and 10.0."""

    @pytest.fixture(autouse=True)
    def embedded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_C, "EMBEDDED_KERNELS", (("k", 80), ("k", 90), ("k", 100)))

    # 8.x runs code for 8.0; code for 9.0 and 10.0 is for that version alone; 7.5 and 12.0 are too old and too new.
    @pytest.mark.parametrize(
        ("capability", "architecture"),
        [((7, 5), None), ((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 100), ((10, 3), None), ((12, 0), None)],
    )
    def test_architecture(self, capability: tuple[int, int], architecture: int | None) -> None:
        assert launch.embedded_architecture(capability) == architecture

    def test_jit_unless_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("triton")
        monkeypatch.delenv(launch.OPTION, raising=False)
        assert launch.way((9, 0)) == "jit"
        monkeypatch.setenv(launch.OPTION, "embedded")
        assert launch.way((9, 0)) == "embedded"
        assert launch.way((12, 0)) == "jit"
        assert launch.table() == {
            "sm_80": "embedded", "sm_90": "embedded", "sm_100": "embedded", "other": "jit",
        }  # fmt: skip
        assert build_info()["triton_kernels"] == launch.table()

    def test_without_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "_has_triton", lambda: False)
        assert launch.way((8, 6)) == "embedded"
        assert launch.table()["other"] == "none"
        with pytest.raises(RuntimeError, match=r"capability 12.0 needs Triton.*\[80, 90, 100\].*pip install triton"):
            launch.way((12, 0))

    def test_unknown_option(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(launch.OPTION, "cubin")
        with pytest.raises(ValueError, match="must be one of jit, embedded, got 'cubin'"):
            launch.way((9, 0))


def test_triton_is_not_needed_at_run_time() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, zoomzero_kernels as zk\n"
        "logits = torch.zeros(1, 2, 5, requires_grad=True)\n"
        "ids = torch.zeros(1, 2, dtype=torch.int64)\n"
        "zk.grpo_loss(logits, ids, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)).loss.backward()\n"
        "print(float(logits.grad.abs().sum()) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"], done.stderr[-2000:]


@pytest.mark.cuda
@needs_embedded
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# A multiple of 16, and not.
@pytest.mark.parametrize("vocab", [4112, 4099])
def test_embedded_equals_jit_on_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocab: int) -> None:
    if launch.embedded_architecture(torch.cuda.get_device_capability()) is None:
        pytest.skip("no kernels are embedded for this GPU")
    case = make_case(4, 9, vocab)
    logits = case.logits.to("cuda", dtype)
    tensors = [tensor.cuda() for tensor in case.tokens]
    results = []
    for option in launch.CHOICES:
        monkeypatch.setenv(launch.OPTION, option)
        leaf = logits.clone().requires_grad_()
        output = grpo_loss(leaf, *tensors, old_logps=case.old_logps.cuda(), ref_logps=case.ref_logps.cuda(), beta=0.1)
        results.append((*output, *torch.autograd.grad(output.loss, leaf)))
    for jit, embedded in zip(*results, strict=True):
        assert torch.equal(jit, embedded)


def test_a_variant_has_a_name_of_its_own() -> None:
    names = [variant.name for variant in variants()]
    assert len(set(names)) == len(names)
    assert row_variant("policy_rows_kernel", "bf16", aligned=True).name in names
