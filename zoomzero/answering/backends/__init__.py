"""Where the model runs: ours in this process, vLLM in this process, or a server; what all of them take and give.

A strategy asks for looks; a `Backend` says what the model said to them. `zoomzero.answering.passes` makes passes of
that, alike for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from zoomzero.budget import FramePlan
from zoomzero.responses import Decoder
from zoomzero.video import Video, VideoError

if TYPE_CHECKING:
    from torch import Tensor

    from zoomzero.answering.scene import Ask
    from zoomzero.patches import VideoPatches


@dataclasses.dataclass(frozen=True)
class Written:
    """A response, token by token."""

    text: str
    """Tags included, without the end token."""
    token_ids: list[int]
    """Without the end token."""
    decoder: Decoder
    """Gives the text of `token_ids`."""
    logps: Tensor | None
    """float32 [T]; None where the model's server gives none."""
    top_logps: Tensor | None
    """float32 [T, k], the largest at each token; None where there are none."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The letter that the model finds the likeliest."""

    letter: str | None
    """One of the question's; None where a server's model gave none of them."""
    confidence: float
    """Its probability; 0 where it is not known."""


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a look costs alone."""

    visual_tokens: int
    """Of the prompt."""
    text_tokens: int
    """Of the prompt, and those written, the end token included."""
    flops: float
    """By formula of the model's config; 0 where that is not known."""


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What the model said to one look."""

    said: Written | Chosen
    """A response, or a letter where that alone was asked for."""
    spent: Spent
    """What it took."""


class Backend(Protocol):
    """Asks a model. One call of the engine makes one, so that what it keeps of videos is given back with it."""

    def add(self, video: Video, patches: VideoPatches) -> None:
        """Frames that were read before their turn."""

    def frames(self, video: Video, plan: FramePlan) -> Tensor:
        """The plan's frames as the model sees them, uint8 [n, height, width, 3]; VideoError if they cannot be read."""

    def speak(self, asks: Sequence[Ask], max_new_tokens: int) -> tuple[list[Spoken | VideoError], dict[str, float]]:
        """What the model says to looks that either all write or all choose a letter, likeliest token after token.

        Returns:
            For each look what was said, or why its frames cannot be read; and the seconds that all took together:
            "read" (spent on frames, or on waiting for them), "encode", "generate".
        """

    def close(self) -> None:
        """End what reads frames."""
