"""What the Triton kernels are compiled for: the one table behind the build, the dispatch, the kernel report and tests.

The run-time arguments of a kernel have fixed types (its annotations), so a variant is a kernel, the type of the logits
where it reads any, and constants. The build compiles every variant for every CUDA architecture and embeds the machine
code in ``zoomzero_kernels._C``; see csrc/embedded_kernels/op.h.

The build loads this file on its own, before torch and the package can be imported, and the dispatch does without
Triton: it imports neither.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Logits that a program of the row kernels handles at a time, and its warps.
#
# Note [One program an SM]: the second read of a row hits the L2 cache only if the rows in flight fit it. 1,024 threads
# of more than 32 registers fill an SM with one program: 132 rows of 300 kB on an H100, in a cache of 50 MB. The policy
# kernel holds so many on purpose, since for sm_100 the compiler would make do with 32. Eight
# logits a thread keep the running sums in registers on sm_80, 90 and 100. A small vocabulary leaves threads idle rather
# than having a variant of its own.
ROW_BLOCK = 8192
ROW_OPTIONS = {"num_warps": 32}
# Members of a group, and tokens, that a program of token_advantages_kernel handles at a time.
MEMBER_BLOCK = 64
TOKEN_BLOCK = 512
# Left to itself, ptxas allots 40 registers where the float64 divisions need more, and spills.
ADVANTAGE_OPTIONS = {"num_warps": 4, "maxnreg": 128}

ROW_KERNELS = ("policy_rows_kernel", "logp_rows_kernel", "logp_rows_backward_kernel", "scale_rows_kernel")
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
LOGIT_TYPES = tuple(_BYTES)
NORMALIZATIONS = ("tokens", "segments", "rewards", "sequence", "none")

_LOGIT_POINTERS = ("logits_ptr", "grad_ptr")
# Types behind the other pointers; float32 unless named here.
_POINTED_TYPES = {
    "token_ids_ptr": "i64", "mask_ptr": "u8", "segments_ptr": "u8", "order_ptr": "i64", "sorted_ids_ptr": "i64",
    "ends_ptr": "i64", "rewards_ptr": "fp64", "credit_ptr": "fp64", "table_ptr": "fp64",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel.

    module: file of the kernel beside this one; logits: type of the logits, None where there are none; constants:
    compile-time arguments; options: Triton's, among them num_warps.
    """

    module: str
    kernel: str
    logits: str | None
    constants: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """How the dispatch asks for it, e.g. "policy_rows_kernel.bf16.aligned"."""
        if self.logits is None:
            return f"{self.kernel}.{self.constants['NORMALIZE']}"
        return f"{self.kernel}.{self.logits}.{'aligned' if self.constants['ALIGNED'] else 'any'}"


def row_variant(kernel: str, logits: str, *, aligned: bool) -> Variant:
    """A kernel of policy_rows.py; aligned: strides and V are multiples of 16, pointers of 16 bytes."""
    together = 16 // _BYTES[logits] if aligned else 1
    constants = {"ALIGNED": aligned, "BLOCK": ROW_BLOCK, "TOGETHER": together}
    return Variant("policy_rows", kernel, logits, constants, ROW_OPTIONS)


def advantage_variant(normalize: str) -> Variant:
    """The kernel of token_advantages.py."""
    constants = {"NORMALIZE": normalize, "BLOCK_MEMBERS": MEMBER_BLOCK, "BLOCK_TOKENS": TOKEN_BLOCK}
    return Variant("token_advantages", "token_advantages_kernel", None, constants, ADVANTAGE_OPTIONS)


def variants() -> Iterator[Variant]:
    """All variants that launches use."""
    for kernel in ROW_KERNELS:
        for logits in LOGIT_TYPES:
            for aligned in (True, False):
                yield row_variant(kernel, logits, aligned=aligned)
    for normalize in NORMALIZATIONS:
        yield advantage_variant(normalize)


def jit_function(variant: Variant) -> Any:
    """The @triton.jit function of a variant; imports Triton."""
    package = f"{__package__}." if __package__ else ""
    return getattr(importlib.import_module(package + variant.module), variant.kernel)


def argument_types(variant: Variant) -> dict[str, str]:
    """Triton's types of the run-time arguments, in order: "*bf16", "i64", "fp32", ..."""
    types = {}
    for parameter in jit_function(variant).params:
        if parameter.is_constexpr:
            continue
        if not parameter.name.endswith("_ptr"):
            types[parameter.name] = parameter.annotation_type
        elif parameter.name in _LOGIT_POINTERS:
            types[parameter.name] = f"*{variant.logits}"
        else:
            types[parameter.name] = "*" + _POINTED_TYPES.get(parameter.name, "fp32")
    return types


def compile_variant(variant: Variant, architecture: int) -> Any:
    """Compile as a launch does; architecture: compute capability times ten. Needs Triton, no GPU.

    Returns:
        Triton's compiled kernel, with ``asm["cubin"]``, ``asm["ptx"]`` and ``metadata``.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = jit_function(variant)
    signature = argument_types(variant) | dict.fromkeys(variant.constants, "constexpr")
    aligned = _LOGIT_POINTERS if variant.constants.get("ALIGNED") else ()
    source = ASTSource(
        fn=function,
        signature={name: signature[name] for name in function.arg_names},
        constexprs=variant.constants,
        attrs={(place,): [["tt.divisibility", 16]] for place, name in enumerate(function.arg_names) if name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=variant.options)
