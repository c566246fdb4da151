"""Draw docs/architecture.svg from the code: every part of the house on the floor above all that it imports.

    python docs/draw_architecture.py            # write the picture
    python docs/draw_architecture.py --check    # exit status 1 where the picture is not that of the code

A part is a module or package directly inside ``zoomzero`` or ``zoomzero_kernels`` (the public ops are one part), or a
folder of ``csrc``. An arrow is an import, wherever it stands in a file, or an include; imports for type checkers alone
do not count. Arrows that a chain of other arrows implies are not drawn. Parts that import each other in a circle have
no floor: the script then names the circle and fails.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PICTURE = CHECKOUT / "docs" / "architecture.svg"
# Halls from the top; the part of the public ops stands for all files of one op each.
HALLS = ("zoomzero", "zoomzero_kernels", "csrc")
OPS = "zoomzero_kernels/ops"
# The native module is csrc seen from Python.
NATIVE = "csrc/bindings"

Arrows = dict[str, set[str]]

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN, LEGEND_WIDTH = 132, 34, 18, 46, 24, 130
COLOURS = {"zoomzero": "#dbe9f6", "zoomzero_kernels": "#e3f1dc", "csrc": "#f7e6d3"}


@functools.cache
def public_ops() -> set[str]:
    """The functions that the kernels' face hands on from a module of the same name."""
    face = (CHECKOUT / "zoomzero_kernels" / "__init__.py").read_text(encoding="utf-8")
    return set(re.findall(r"^from zoomzero_kernels\.(\w+) import \1$", face, re.MULTILINE)) - {"build_info"}


def python_part(module: str) -> str | None:
    """The part of a dotted module name, None for modules of others and for the faces of the packages."""
    names = module.split(".")
    if names[0] not in HALLS[:2] or len(names) == 1:
        return None
    if names[:2] == ["zoomzero_kernels", "_C"]:
        return NATIVE
    if names[1] == "_built":
        return None
    if names[0] == "zoomzero_kernels" and names[1] in public_ops():
        return OPS
    return f"{names[0]}/{names[1]}"


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, except what stands under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from running_nodes(child)


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Dotted names of what a file imports; `from a import b` gives a.b where that is a module, else a."""
    for node in running_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = CHECKOUT.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir() or alias.name == "_C"
                # The face of the kernels hands their ops on.
                is_op = node.module == "zoomzero_kernels"
                yield f"{node.module}.{alias.name}" if is_module or is_op else node.module


def python_arrows() -> Arrows:
    arrows: Arrows = {}
    for hall in HALLS[:2]:
        for file in sorted((CHECKOUT / hall).rglob("*.py")):
            names = file.relative_to(CHECKOUT).with_suffix("").parts
            part = python_part(".".join(names))
            if part is None or names[1:] in (("__init__",), ("__main__",)):
                continue
            found = {python_part(module) for module in imported_modules(ast.parse(file.read_text(encoding="utf-8")))}
            arrows.setdefault(part, set()).update(found - {None, part})  # type: ignore[arg-type]
    return arrows


def native_arrows() -> Arrows:
    arrows: Arrows = {}
    for file in sorted((CHECKOUT / "csrc").rglob("*")):
        if file.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        folder = file.relative_to(CHECKOUT / "csrc").parts[0]
        part = NATIVE if folder == file.name else f"csrc/{folder}"
        included = re.findall(r'^#include "([^"/]+)/', file.read_text(encoding="utf-8"), re.MULTILINE)
        arrows.setdefault(part, set()).update({f"csrc/{name}" for name in included} - {part})
        if file.name == "bind.cpp":  # bindings.cpp calls it without a header
            arrows.setdefault(NATIVE, set()).add(part)
    return arrows


def all_arrows() -> Arrows:
    """Every part with the parts that it imports."""
    arrows = python_arrows() | native_arrows()
    known = set(arrows)
    # `from zoomzero_kernels import GRPOLossOutput`: a name that the kernels' face hands on belongs to the ops.
    followed = {
        part: {name if name in known else OPS if name.startswith("zoomzero_kernels/") else name for name in below}
        for part, below in arrows.items()
    }
    return {part: (below & known) - {part} for part, below in followed.items()}


def floors(arrows: Arrows) -> dict[str, int]:
    """The floor of each part, counted from the top, 0: directly below the lowest part that imports it.

    Raises:
        ValueError: parts import each other in a circle.
    """
    importers: Arrows = {part: {other for other in arrows if part in arrows[other]} for part in arrows}
    found: dict[str, int] = {}

    def floor(part: str, path: tuple[str, ...]) -> int:
        if part in path:
            circle = " <- ".join((*path[path.index(part) :], part))
            raise ValueError(f"parts must not import each other in a circle, got {circle}; move what both need below")
        if part not in found:
            found[part] = max((floor(above, (*path, part)) + 1 for above in sorted(importers[part])), default=0)
        return found[part]

    for part in sorted(arrows):
        floor(part, ())
    return found


def reachable(arrows: Arrows, part: str) -> set[str]:
    """All that a part imports, directly or through others."""
    return set().union(*({below} | reachable(arrows, below) for below in arrows[part]))


def drawn_arrows(arrows: Arrows) -> Arrows:
    """Without the arrows that a longer way implies."""
    return {
        part: {name for name in below if not any(name in reachable(arrows, other) for other in below - {name})}
        for part, below in arrows.items()
    }


def places(levels: dict[str, int], arrows: Arrows) -> dict[str, tuple[float, int]]:
    """Left edge and floor of each box, near the mean of what stands on it."""
    rows: dict[int, list[str]] = {}
    for part, level in levels.items():
        rows.setdefault(level, []).append(part)
    width = max(len(row) for row in rows.values()) * (BOX_WIDTH + GAP_X)
    centres: dict[str, float] = {}
    for _, row in sorted(rows.items()):
        above = {part: [centres[other] for other in centres if part in arrows[other]] for part in row}
        row.sort(key=lambda part: (sum(above[part]) / len(above[part]) if above[part] else width / 2, part))
        step = width / len(row)
        for index, part in enumerate(row):
            centres[part] = (index + 0.5) * step
    return {
        part: (MARGIN + LEGEND_WIDTH + centres[part] - BOX_WIDTH / 2, row)
        for row, names in rows.items()
        for part in names
    }


def svg(arrows: Arrows) -> str:
    """The picture; drawn with the page's own text colour on white, so that it reads in light and dark pages alike."""
    levels = floors(arrows)
    shown = drawn_arrows(arrows)
    boxes = places(levels, shown)
    width = max(left for left, _ in boxes.values()) + BOX_WIDTH + MARGIN
    height = (max(levels.values()) + 1) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN

    def top(row: int) -> int:
        return MARGIN + row * (BOX_HEIGHT + GAP_Y)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-family="sans-serif" '
        'font-size="12">',
        "<title>The parts of zoomzero, each above all that it imports</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for part, below in sorted(shown.items()):
        left, row = boxes[part]
        for name in sorted(below):
            end, end_row = boxes[name]
            x1, y1, x2, y2 = left + BOX_WIDTH / 2, top(row) + BOX_HEIGHT, end + BOX_WIDTH / 2, top(end_row)
            bend = (y2 - y1) / 2
            curve = f"M{x1:.0f} {y1} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2}"
            lines.append(f'<path d="{curve}" fill="none" stroke="#9aa4ae"/>')
    for part, (left, row) in sorted(boxes.items()):
        hall, name = part.split("/")
        box = f'x="{left:.0f}" y="{top(row)}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4"'
        lines.append(f'<rect {box} fill="{COLOURS[hall]}" stroke="#5b6670"/>')
        lines.append(
            f'<text x="{left + BOX_WIDTH / 2:.0f}" y="{top(row) + BOX_HEIGHT / 2 + 4:.0f}" text-anchor="middle" '
            f'fill="#1d242b">{escape(name)}</text>'
        )
    for index, hall in enumerate(HALLS):
        edge = MARGIN + 22 * index
        square = f'x="{MARGIN}" y="{edge}" width="12" height="12"'
        lines.append(f'<rect {square} fill="{COLOURS[hall]}" stroke="#5b6670"/>')
        lines.append(f'<text x="{MARGIN + 18}" y="{edge + 11}" fill="#1d242b">{hall}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(arguments: list[str]) -> int:
    try:
        drawn = svg(all_arrows())
    except ValueError as error:
        print(f"docs/draw_architecture.py: {error}", file=sys.stderr)
        return 1
    if "--check" in arguments:
        if PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == drawn:
            return 0
        print("docs/architecture.svg is not that of the code; run python docs/draw_architecture.py", file=sys.stderr)
        return 1
    PICTURE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
