"""NVRTC, CUDA's compiler as a library: the CUDA kernels' sources to machine code, on the machine where they run.

Every CUDA build of torch brings one of its own CUDA release, as does CuPy; a driver is not needed to compile.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# NVRTC has no headers; the kernels include this one alone.
_CSTDINT = """
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long uintptr_t;
"""
# Newest first; a driver runs the code of every release of its own major version, and of older ones.
_MAJORS = (13, 12)


class MachineCode(NamedTuple):
    """A compiled kernel: its name in the image, and the image (a cubin, or PTX where NVRTC knows no such GPU)."""

    name: str
    image: bytes


class Compiler:
    """One NVRTC library."""

    def __init__(self, path: str) -> None:
        """Load it, with the library of built-ins that it looks for without saying where.

        Raises:
            OSError: it cannot be loaded.
        """
        for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(path)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    def _check(self, status: int, log: str = "") -> None:
        if status != 0:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            what = self._library.nvrtcGetErrorString(status).decode()
            raise RuntimeError(
                f"zoomzero_kernels: NVRTC must compile the CUDA kernels, got {what} {log}; report this fault of "
                "zoomzero, or build it with nvcc"
            )

    def architectures(self) -> list[int]:
        """Compute capabilities, times ten, for which it writes machine code."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(found))
        return list(found)

    def compile(self, source: Path, include: Path, kernel: str, architecture: str) -> MachineCode:
        """Compile one kernel of a source file.

        Args:
            source: the file; include: the folder of what it includes.
            kernel: the kernel's C++ name with template arguments.
            architecture: "sm_90" for machine code, "compute_90" for PTX.

        Raises:
            RuntimeError: the source does not compile; the message holds the compiler's.
        """
        library, program = self._library, ctypes.c_void_p()
        texts, names = (ctypes.c_char_p * 1)(_CSTDINT.encode()), (ctypes.c_char_p * 1)(b"cstdint")
        text = source.read_bytes()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 1, texts, names))
        try:
            self._check(library.nvrtcAddNameExpression(program, kernel.encode()))
            # Functions without a mark are the device's: declared for the host too, where nvcc compiles them.
            options = ["--std=c++17", "-default-device", f"-arch={architecture}", f"-I{include}"]
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = library.nvrtcCompileProgram(program, len(options), given)
            self._check(status, self._text(program, "ProgramLog") if status else "")
            name = ctypes.c_char_p()
            self._check(library.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(name)))
            image = self._bytes(program, "CUBIN" if architecture.startswith("sm_") else "PTX")
            return MachineCode((name.value or b"").decode(), image)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        held = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, held))
        return held.raw

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        return self._bytes(program, what).rstrip(b"\0").decode(errors="replace")


def _libraries(major: int) -> Iterator[str]:
    """Where NVRTC of a major release may lie: in NVIDIA's wheels, then where the loader looks."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from map(str, sorted(Path(folder).glob(f"*/lib/libnvrtc.so.{major}*")))
    yield f"libnvrtc.so.{major}"


@functools.cache
def find(newest: tuple[int, int] | None) -> Compiler | None:
    """The newest NVRTC whose code a driver for CUDA ``newest`` runs; None where none is installed."""
    for major in _MAJORS:
        if newest is None or major > newest[0]:
            continue
        for path in _libraries(major):
            try:
                return Compiler(path)
            except OSError:
                continue
    return None


def text_of_sources(include: Path) -> bytes:
    """All that a kernel's code may depend on, for the name under which it is kept."""
    files = sorted(path for path in include.rglob("*") if re.fullmatch(r"\.(cuh|h)", path.suffix))
    return b"\0".join(path.read_bytes() for path in files)
