"""Strategies: which looks at a video are made, and what is made of what the model says to them.

A strategy is a generator. It gets a `Scene`, yields looks (a list of `Ask`; those of one list share forwards), receives
the `Pass` of each, in order, and returns a `Verdict`. It never sees a model: the engine runs the generators of many
queries side by side and batches their looks. A new strategy is one file and one line in `STRATEGIES`.

Importing this module loads no model library, so that a misspelt name is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from zoomzero.answering.strategies.coarse_to_fine import coarse_to_fine
from zoomzero.answering.strategies.divide_and_conquer import divide_and_conquer
from zoomzero.answering.strategies.rounds import rounds
from zoomzero.answering.strategies.single import single

if TYPE_CHECKING:
    from zoomzero.answering.answer import Pass, Verdict
    from zoomzero.answering.scene import Ask, Scene

    Strategy = Callable[[Scene], Generator[Sequence[Ask], Sequence[Pass], Verdict]]

STRATEGIES: dict[str, Strategy] = {
    "single": single,
    "coarse_to_fine": coarse_to_fine,
    "divide_and_conquer": divide_and_conquer,
    "rounds": rounds,
}


def check_strategy(name: str) -> None:
    """ValueError unless `name` is a strategy's."""
    if name not in STRATEGIES:
        raise ValueError(f"answer: strategy must be one of {', '.join(STRATEGIES)}, got {name!r}; choose one")
