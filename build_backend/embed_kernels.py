"""Compile the Triton kernels and write the C++ source that embeds their machine code; CMake runs this.

    python build_backend/embed_kernels.py FOLDER ARCHITECTURE...

FOLDER receives the cubins and embedded_kernels_table.cpp; see csrc/embedded_kernels/op.h. Needs Triton, no GPU.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).resolve().parent.parent / "zoomzero_kernels" / "triton_kernels"
LETTERS = {"i32": "i", "i64": "l", "fp32": "f", "fp64": "d"}


def parameter_letters(compiled: Any, types: dict[str, str]) -> str:
    """The kernel's parameters as csrc/embedded_kernels/op.h writes them, Triton's scratch pointers at the end."""
    letters = "".join("p" if name.startswith("*") else LETTERS[name] for name in types.values())
    (parameters,) = re.findall(r"\.entry [^(]*\(([^)]*)\)", compiled.asm["ptx"])
    num_scratch = parameters.count(".param") - len(letters)
    metadata = compiled.metadata
    needs_scratch = metadata.global_scratch_size or metadata.profile_scratch_size
    if not 0 <= num_scratch <= 2 or needs_scratch or metadata.num_ctas != 1 or metadata.shared > 48 * 1024:
        sys.exit(f"zoomzero build: {metadata.name} needs a launch that the embedded kernels do not offer")
    return letters + "0" * num_scratch


def main(folder: Path, architectures: list[int]) -> None:
    # Before Triton is imported: without these the machine code would hold paths of this machine, and a cache in the
    # home folder would be needed.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton_cache")
    sys.path.insert(0, str(KERNELS))
    from variants import argument_types, compile_variant, variants

    folder.mkdir(parents=True, exist_ok=True)
    labels: list[str] = []
    images: list[str] = []
    rows: list[str] = []
    for variant in variants():
        for architecture in architectures:
            compiled = compile_variant(variant, architecture)
            cubin = folder / f"{variant.name}.sm_{architecture}.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            label = f"zoomzero_kernel_{len(labels)}"
            labels.append(f"extern const char {label}[];")
            images.append(f'.balign 16\n{label}:\n.incbin "{cubin}"')
            letters = parameter_letters(compiled, argument_types(variant))
            rows.append(
                f'{{"{variant.name}", {architecture}, "{compiled.metadata.name}", "{letters}", '
                f"{32 * compiled.metadata.num_warps}, {compiled.metadata.shared}, {label}, {cubin.stat().st_size}}},"
            )
    newline = "\n"
    (folder / "embedded_kernels_table.cpp").write_text(
        f"""// Written by build_backend/embed_kernels.py.
#include "embedded_kernels/op.h"

__asm__(R"(
.section .rodata
{newline.join(images)}
.previous
)");

extern "C" {{
{newline.join(labels)}
}}

namespace zoomzero {{
namespace {{
constexpr EmbeddedKernel kKernels[] = {{
{newline.join(rows)}
}};
}}  // namespace

std::span<const EmbeddedKernel> embedded_kernels() {{ return kKernels; }}

}}  // namespace zoomzero
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(architecture) for architecture in sys.argv[2:]])
