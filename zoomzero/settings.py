"""Budgets and prompts of the two passes, as a checkpoint was trained with them: zoomzero.json beside its weights."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from zoomzero.budget.plan import MAX_FRAME_TOKENS, MAX_FRAMES, MIN_FRAME_TOKENS, SAMPLE_FPS
from zoomzero.prompts import Prompts

SETTINGS_FILE = "zoomzero.json"


@dataclasses.dataclass(frozen=True)
class PassSettings:
    """How frames are chosen for one pass; the arguments of `zoomzero.budget.plan_frames` of the same names.

    context_fraction is for the zoom pass: the share of its frames that is spread over the rest of the video.
    """

    budget_tokens: int
    sample_fps: float = SAMPLE_FPS
    max_frames: int = MAX_FRAMES
    min_frame_tokens: int = MIN_FRAME_TOKENS
    max_frame_tokens: int = MAX_FRAME_TOKENS
    context_fraction: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.name == "context_fraction":
                if not is_number or not 0 <= value < 1:
                    raise ValueError(
                        f"PassSettings: context_fraction must be in [0, 1), got {value!r}; 0 leaves it out"
                    )
            elif not is_number or not value > 0:
                raise ValueError(f"PassSettings: {field.name} must be a positive number, got {value!r}; correct it")


@dataclasses.dataclass(frozen=True)
class ZoomSettings:
    """What a checkpoint was trained with, stored beside its weights as zoomzero.json.

    The defaults are the method's: 8192 visual tokens for the coarse pass, 4096 from at most 256 frames for the zoom.
    """

    coarse: PassSettings = PassSettings(budget_tokens=8192)
    zoom: PassSettings = PassSettings(budget_tokens=4096, max_frames=256)
    prompts: Prompts = dataclasses.field(default_factory=Prompts)

    def __post_init__(self) -> None:
        if self.coarse.context_fraction:
            raise ValueError(
                "ZoomSettings: the coarse pass sees the whole video and has no context_fraction, got "
                f"{self.coarse.context_fraction}; set it for the zoom pass"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        Path(folder, SETTINGS_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> ZoomSettings:
        """Read zoomzero.json from a checkpoint's folder; the defaults if it has none.

        Raises:
            ValueError: the file is there but is not valid.
        """
        file = Path(folder, SETTINGS_FILE)
        if not file.exists():
            return ZoomSettings()
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            return ZoomSettings(
                coarse=PassSettings(**data["coarse"]),
                zoom=PassSettings(**data["zoom"]),
                prompts=Prompts(**data["prompts"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not valid settings of zoomzero: {error}; restore or delete the file") from error
