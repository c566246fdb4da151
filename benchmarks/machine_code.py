"""Loops of compiled GPU kernels and how many instructions they take, read from the disassembly; no GPU takes part."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_FUNCTION = re.compile(r"Function : (\S+)")
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA(?:\.\S+)?\s.*?(0x[0-9a-f]+)")


@dataclass
class Loop:
    """A loop and those inside it. Addresses of its first and last instruction; opcodes of all of them, in order."""

    first: int
    last: int
    opcodes: tuple[str, ...]
    parent: Loop | None = field(default=None, repr=False)
    children: list[Loop] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Instructions of one turn, each loop inside counted once."""
        return len(self.opcodes)

    def uses(self, prefix: str) -> bool:
        """Whether an opcode begins with this, e.g. "STG.E.64"."""
        return any(opcode.startswith(prefix) for opcode in self.opcodes)

    def ancestor(self, levels: int) -> Loop:
        """The loop so many levels further out, or the outermost."""
        loop = self
        for _ in range(levels):
            loop = loop.parent or loop
        return loop


def _opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]


def _nested(loops: list[Loop]) -> list[Loop]:
    """The same loops, outermost first, each knowing its parent and children."""
    ordered = sorted(loops, key=lambda loop: (loop.first, -loop.last))
    around: list[Loop] = []
    for loop in ordered:
        while around and not (around[-1].first <= loop.first and loop.last <= around[-1].last):
            around.pop()
        if around:
            loop.parent = around[-1]
            around[-1].children.append(loop)
        around.append(loop)
    return ordered


def loops_of(cubin: Path) -> Iterator[tuple[str, list[Loop]]]:
    """(mangled name, its loops) of every kernel in a compiled file."""
    text = subprocess.run([TOOLS / "cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True).stdout
    for name, body in zip(*[iter(_FUNCTION.split(text)[1:])] * 2, strict=True):
        instructions = [(int(match[1], 16), match[2]) for match in map(_INSTRUCTION.match, body.splitlines()) if match]
        ends: dict[int, int] = {}  # a loop may branch back from several places
        for address, instruction in instructions:
            branch = _BRANCH.search(instruction)
            if branch and int(branch[1], 16) < address:
                ends[int(branch[1], 16)] = address
        yield (
            name,
            _nested(
                [
                    Loop(first, last, tuple(_opcode(what) for where, what in instructions if first <= where <= last))
                    for first, last in ends.items()
                ]
            ),
        )


def innermost(loops: list[Loop], *, uses: str, without: str = "-") -> list[Loop]:
    """Loops without loops inside that use one opcode and not another."""
    return [loop for loop in loops if not loop.children and loop.uses(uses) and not loop.uses(without)]
