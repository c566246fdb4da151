"""The package as installed: what it was built with, what it demands, how it fails."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from support.shared_objects import needed_libraries, undefined_symbols

from zoomzero_kernels import _C, build_info
from zoomzero_kernels.host import native


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_build_info_describes_this_installation() -> None:
    info = build_info()
    assert info["torch_running"] == torch.__version__
    assert info["version"].count(".") == 2
    assert info["cpu_capability"] in {"AVX512", "AVX2", "DEFAULT"}
    assert info["backends"]["cpu"] is True
    assert info["backends"]["cuda"] is (torch.cuda.is_available() and info["cuda_kernels"] is not None)
    assert (info["cuda_built"] is None) == (info["cuda_archs"] == [])


def test_another_torch_release_is_welcome() -> None:
    done = run_python(
        "import torch\n"
        "torch.__version__ = '9.9.1'\n"
        "from zoomzero_kernels import build_info\n"
        "print(build_info()['torch_running'])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "9.9.1"), done.stderr


def test_native_module_knows_no_torch() -> None:
    module = Path(_C.__file__)
    libraries = needed_libraries(module)
    assert not [name for name in libraries if re.search("torch|c10|python", name)], libraries
    # Linked statically: no release of CUDA is demanded.
    assert not [name for name in libraries if "cuda" in name], libraries
    symbols = undefined_symbols(module)
    assert "PyTuple_SetItem" in symbols  # the table was read
    foreign = [name for name in symbols if re.search(r"N[VKRO]*(2at|3c10|5torch|6caffe2)|THP", name)]
    assert foreign == []


def test_torch_itself_would_fail_that_scan() -> None:
    symbols = undefined_symbols(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert [name for name in symbols if re.search(r"N[VKRO]*(2at|3c10|5torch|6caffe2)|THP", name)]


_ONE_POOL = """
import re, torch, zoomzero_kernels
torch.set_num_threads(2)
zoomzero_kernels.selective_logps(torch.zeros(4, 8, 1000), torch.zeros(4, 8, dtype=torch.int64))
print(len({line.split()[-1] for line in open("/proc/self/maps") if re.search("libgomp|libomp|libiomp", line)}))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the mapped libraries from /proc")
@pytest.mark.skipif(not build_info()["openmp"], reason="built without OpenMP")
def test_one_copy_of_openmp_serves_torch_and_the_kernels() -> None:
    done = run_python(_ONE_POOL)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


_FORK = """
import multiprocessing, sys, torch, zoomzero_kernels as z
def work(expected):
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(run(), expected))
def run():
    logits = torch.arange(4 * 8 * 300.0).view(4, 8, 300).sin()
    ids = torch.arange(32).view(4, 8)
    frames = torch.arange(3 * 40 * 50 * 3).remainder(256).to(torch.uint8).view(3, 40, 50, 3)
    segments = ids.remainder(3).to(torch.uint8)
    return (
        z.selective_logps(logits, ids),
        z.frame_resample(frames, size=(28, 56), mean=(0.5,) * 3, std=(0.5,) * 3),
        z.token_resample(logits.view(32, 300), torch.tensor([[2, 4, 4]]), torch.tensor([[2, 2], [3, 3]])),
        z.token_advantages(torch.eye(4), segments, torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), ids >= 0),
    )
torch.set_num_threads(2)
expected = run()  # makes the team of threads that a child does not have
child = multiprocessing.get_context("fork").Process(target=work, args=(expected,))
child.start()
child.join(60)
if child.is_alive():
    child.kill()
    sys.exit("the forked child waits for threads that it does not have")
sys.exit(child.exitcode)
"""


def test_a_forked_worker_computes_after_its_parent_used_threads() -> None:
    done = run_python(_FORK)
    assert done.returncode == 0, done.stderr


def test_native_code_is_never_handed_a_tensor_that_it_would_misread() -> None:
    values = torch.zeros(2, 3)
    for wrong in (values.t(), values.double(), torch.zeros(5), values.to("meta")):
        with pytest.raises(ValueError, match=r"must be given 6 contiguous values of torch.float32 on cpu, got torch\."):
            native.address(wrong, torch.float32, 6, values.device)
    assert native.address(values, torch.float32, 6, values.device) == values.data_ptr()
    assert native.address(None, torch.float32, 6, values.device) == 0
    with pytest.raises(TypeError, match=r"native code takes torch.float32, .*, got torch.int8; convert"):
        native.element_type(values.to(torch.int8))


def test_import_from_bare_sources_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    built = shutil.ignore_patterns("*.so", "_built.py")
    shutil.copytree(checkout / "zoomzero_kernels", tmp_path / "zoomzero_kernels", ignore=built)
    done = run_python(
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__name__.startswith('ScikitBuild')]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import zoomzero_kernels\n"
    )
    assert done.returncode != 0
    assert "the native module must be built" in done.stderr
    assert "make setup" in done.stderr


def test_kernels_need_only_torch_and_numpy() -> None:
    done = run_python(
        "import sys, zoomzero_kernels\n"
        "loaded = {'transformers', 'trl', 'av', 'nvidia.dali', 'torchvision', 'zoomzero'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    assert done.returncode == 0, done.stderr


def test_torch_is_no_build_requirement(checkout: Path) -> None:
    pyproject = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    assert not [name for name in pyproject["build-system"]["requires"] if re.match("torch|triton|nvidia", name)]
    assert "torch>=2.9" in pyproject["project"]["dependencies"]


def test_native_sources_include_nothing_of_torch(checkout: Path) -> None:
    sources = [path for path in (checkout / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 20
    includes = {name for path in sources for name in re.findall(r"#include [<\"](.*)[>\"]", path.read_text("utf-8"))}
    assert not [name for name in includes if re.match("torch/|ATen/|c10/|caffe2/", name)]
