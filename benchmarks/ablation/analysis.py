"""From runs to tables: means, paired differences by seed with intervals, Holm's correction, and what could be seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plan
from scipy import stats

Line = Mapping[str, Any]
SHOWN = {
    "mIoU": "mIoU",
    "mIoP": "mIoP",
    "Acc": "Acc zoomed",
    "coarse_Acc": "Acc coarse",
    "Acc@GQA": "Acc@GQA",
    "held_evidence": "evidence in the zoom",
    "Acc_held": "Acc there",
    "Acc_missed": "Acc elsewhere",
}


@dataclass(frozen=True)
class Difference:
    """An arm less the baseline in one figure, over the seeds that both have."""

    arm: str
    """The arm."""
    figure: str
    """The figure."""
    num_seeds: int
    """Seeds that both have."""
    mean: float
    """Mean of the differences by seed."""
    half_width: float
    """Of the t interval of that mean at `plan.LEVEL`, not corrected."""
    p: float
    """Of the paired t test, two-sided."""
    corrected: float
    """The same after Holm's correction over all arms and tested figures of the table."""
    visible: float
    """The smallest true difference that a test with this spread would have found with probability `plan.POWER`."""


def final_figures(line: Line) -> dict[str, float]:
    """The figures after the last measured step."""
    return line["figures"][str(max(int(step) for step in line["figures"]))]


def by_arm(lines: Iterable[Line], labels: str, start: str) -> dict[str, dict[int, dict[str, float]]]:
    """Final figures by arm and seed, arms in the plan's order; runs of the learning curve are not among them."""
    found: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in plan.ARMS}
    for line in lines:
        if (line["labels"], line["start"], line["curve"]) == (labels, start, False):
            found[line["arm"]][line["seed"]] = final_figures(line)
    return {arm: seeds for arm, seeds in found.items() if seeds}


def differences(arms: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Difference]:
    """Every arm against the baseline in the tested figures; empty without two seeds in common."""
    base = arms.get(plan.BASELINE, {})
    raw = []
    for arm, seeds in arms.items():
        common = sorted(base.keys() & seeds.keys())
        if arm != plan.BASELINE and len(common) > 1:
            for figure in plan.TESTED:
                raw.append((arm, figure, [seeds[seed][figure] - base[seed][figure] for seed in common]))
    tests = [_paired(values) for _, _, values in raw]
    corrected = holm([p for _, p, _ in tests])
    return [
        Difference(arm, figure, len(values), statistics.mean(values), half, p, c, visible)
        for (arm, figure, values), (half, p, visible), c in zip(raw, tests, corrected, strict=True)
    ]


def _paired(values: Sequence[float]) -> tuple[float, float, float]:
    """Half width of the interval, p, and the visible difference of the mean of differences [n], n > 1."""
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n)
    t = stats.t(n - 1)
    critical = t.ppf((1 + plan.LEVEL) / 2)
    mean = statistics.mean(values)
    if error == 0:
        return 0.0, 0.0 if mean else 1.0, 0.0
    return critical * error, 2 * t.sf(abs(mean) / error), (critical + t.ppf(plan.POWER)) * error


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: p values of a family, in any order, to those that keep its error rate."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return corrected


def tables(lines: Sequence[Line]) -> str:
    """All tables as Markdown."""
    parts = []
    for labels, start, title in (
        ("clean", "first", "True spans"),
        ("wrong", "first", f"{plan.WRONG_SHARE:.0%} of the training spans wrong"),
        ("clean", "second", "Another start checkpoint"),
    ):
        arms = by_arm(lines, labels, start)
        if arms:
            parts += [f"### {title}", _means_table(arms), _difference_table(differences(arms))]
    curve = _curve_table(lines)
    return "\n\n".join(part for part in [*parts, curve] if part) + "\n"


def _means_table(arms: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    rows = [["arm", "seeds", *SHOWN.values()]]
    for arm, seeds in arms.items():
        row = [arm, str(len(seeds))]
        for name in SHOWN:
            values = [figures[name] for figures in seeds.values() if name in figures]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            row.append(f"{statistics.mean(values):.3f}{spread}" if values else "")
        rows.append(row)
    return _markdown(rows)


def _difference_table(found: Sequence[Difference]) -> str:
    if not found:
        return ""
    rows = [["arm less plain", "figure", "seeds", "difference, 95 % interval", "p", "p corrected", "could be seen"]]
    for item in found:
        interval = f"{item.mean:+.3f} ({item.mean - item.half_width:+.3f} to {item.mean + item.half_width:+.3f})"
        shown = [f"{item.p:.3f}", f"{item.corrected:.3f}", f"{item.visible:.3f}"]
        rows.append([item.arm, item.figure, str(item.num_seeds), interval, *shown])
    return _markdown(rows)


def _curve_table(lines: Sequence[Line]) -> str:
    curves = [line for line in lines if line["curve"]]
    if not curves:
        return ""
    rows = [["arm", "figure", "seeds", *(f"{step} steps" for step in plan.CURVE_STEPS)]]
    for arm in plan.CURVE_ARMS:
        own = [line["figures"] for line in curves if line["arm"] == arm]
        for figure in plan.TESTED if own else ():
            means = [statistics.mean(run[str(step)][figure] for run in own) for step in plan.CURVE_STEPS]
            rows.append([arm, figure, str(len(own)), *(f"{mean:.3f}" for mean in means)])
    return "### Learning curve\n\n" + _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))
