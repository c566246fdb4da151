"""What is compared, decided before anything was run: arms, seeds, data, figures and the test. See docs/results.md."""

from __future__ import annotations

from dataclasses import dataclass

STEPS, PROMPTS, ROLLOUTS = 80, 16, 8
LEARNING_RATE = 3e-4
MAX_NEW_TOKENS = 40
# Sets of clips that nothing else uses: the demo's are 300 and 400, the tiny checkpoint's 100 and 200.
TRAIN_SEED, TEST_SEED = 700, 800
NUM_TRAIN_CLIPS, NUM_TEST_CLIPS = 640, 400
# Share of the training questions whose true span is moved elsewhere, in the IoU reward only.
WRONG_SHARE = 0.5
LABELS = {"clean": 0.0, "wrong": WRONG_SHARE}
# Steps after which the two arms of the learning curve are measured.
CURVE_STEPS = (0, 20, 40, 60, 80, 120, 160)
# The figures that are tested; all others are shown beside them without a test.
TESTED = ("mIoU", "Acc")
LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    credit: str
    """As the trainer's setting."""
    normalize: str
    """The trainer's advantage_normalize."""
    zoom: bool
    """Whether the zoom reward counts."""
    meaning: str
    """In words, for the table."""


BASELINE = "plain"
ARMS = {
    "plain": Arm("uniform", "sequence", False, "GRPO: the total of format, IoU and answer to every token"),
    "plain + zoom": Arm("uniform", "sequence", True, "the same with the zoom reward"),
    "tokens": Arm("token_adv", "tokens", False, "TokenAdv as published: IoU to all tokens outside the answer"),
    "span tokens": Arm("span_adv", "tokens", False, "TokenAdv, IoU to the span's tokens alone"),
    "segments": Arm("token_adv", "segments", False, "TokenAdv, each segment normalised by its own statistics"),
    "tokens + zoom": Arm("token_adv", "tokens", True, "TokenAdv as published, with the zoom reward"),
    "segments + zoom": Arm("token_adv", "segments", True, "by segment, with the zoom reward"),
}
REDUCED_ARMS = ("plain", "plain + zoom", "segments + zoom")
CURVE_ARMS = ("segments", "segments + zoom")


@dataclass(frozen=True)
class Run:
    """One training and its measurement."""

    arm: str
    """Name of an arm."""
    seed: int
    """Of the data's order, the sampling and the wrong spans."""
    labels: str = "clean"
    """Whether the spans of the IoU reward are the true ones."""
    start: str = "first"
    """Start checkpoint: "first", the package's, or "second", made like it from another seed."""
    curve: bool = False
    """Whether it is a run of the learning curve: longer, and measured on the way."""

    @property
    def measured_after(self) -> tuple[int, ...]:
        """Steps after which the model is measured; the last ends the run."""
        return CURVE_STEPS if self.curve else (STEPS,)


def _by_seed(arms: tuple[str, ...], seeds: int, labels: str = "clean", start: str = "first") -> list[Run]:
    """Seed by seed, so that a set that was cut short compares the same seeds of every arm."""
    return [Run(arm, seed, labels, start) for seed in range(seeds) for arm in arms]


# The reduced set is part of the full one.
REDUCED = _by_seed(REDUCED_ARMS, 5)
CURVE = [Run(arm, seed, curve=True) for seed in range(3) for arm in CURVE_ARMS]
FULL = list(
    dict.fromkeys(
        [
            *REDUCED,
            *_by_seed(tuple(ARMS), 6),
            *_by_seed(tuple(ARMS), 5, labels="wrong"),
            *_by_seed(REDUCED_ARMS, 5, start="second"),
            *CURVE,
        ]
    )
)
SETS = {"reduced": REDUCED, "full": FULL, "curve": CURVE}
