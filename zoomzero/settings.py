"""Budgets and prompts of the two passes, as a checkpoint was trained with them: zoomzero.json beside its weights."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from zoomzero.budget.plan import MAX_FRAME_TOKENS, MAX_FRAMES, MIN_FRAME_TOKENS, SAMPLE_FPS
from zoomzero.files import write_whole
from zoomzero.prompts import Prompts

SETTINGS_FILE = "zoomzero.json"
# Beyond what any model takes; a larger number is a slip of the pen, and would fail for memory hours later.
MAX_TOKENS = 1 << 20
MAX_PLANNED_FRAMES = 1 << 16
MAX_SAMPLE_FPS = 240.0
FRAME_CHOICES = ("exact", "keyframes")
# A file of settings is a page of text.
MAX_FILE_BYTES = 1 << 18

Section = TypeVar("Section")


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    )


def _check_whole(name: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ValueError(f"{name} must be a whole number from 1 to {largest}, got {value!r:.80}; correct it")


@dataclasses.dataclass(frozen=True)
class PassSettings:
    """How frames are chosen for one pass; the arguments of `zoomzero.budget.plan_frames` of the same names."""

    budget_tokens: int
    """Most visual tokens of the pass."""
    sample_fps: float = SAMPLE_FPS
    """Candidate frames per second."""
    max_frames: int = MAX_FRAMES
    """Most frames of the pass."""
    min_frame_tokens: int = MIN_FRAME_TOKENS
    """Fewest visual tokens per temporal patch."""
    max_frame_tokens: int = MAX_FRAME_TOKENS
    """Most visual tokens per temporal patch."""
    context_fraction: float = 0.0
    """For the zoom pass: the share of its frames that is spread over the rest of the video."""
    frame_choice: str = "exact"
    """"exact" reads the planned frames; "keyframes" moves each to the nearest key frame within one step of the plan,
    which reads an hour in seconds."""

    def __post_init__(self) -> None:
        if self.frame_choice not in FRAME_CHOICES:
            raise ValueError(f"frame_choice must be one of {FRAME_CHOICES}, got {self.frame_choice!r:.80}; correct it")
        _check_whole("budget_tokens", self.budget_tokens, MAX_TOKENS)
        _check_whole("max_frames", self.max_frames, MAX_PLANNED_FRAMES)
        _check_whole("min_frame_tokens", self.min_frame_tokens, MAX_TOKENS)
        _check_whole("max_frame_tokens", self.max_frame_tokens, MAX_TOKENS)
        if not _is_number(self.sample_fps) or not 0 < self.sample_fps <= MAX_SAMPLE_FPS:
            raise ValueError(
                f"sample_fps must be a number above 0 and at most {MAX_SAMPLE_FPS:g}, got {self.sample_fps!r}; "
                f"{SAMPLE_FPS:g} is usual"
            )
        if not _is_number(self.context_fraction) or not 0 <= self.context_fraction < 1:
            raise ValueError(f"context_fraction must be in [0, 1), got {self.context_fraction!r}; 0 leaves it out")
        if self.max_frame_tokens < self.min_frame_tokens:
            raise ValueError(
                f"max_frame_tokens must be at least min_frame_tokens, got {self.max_frame_tokens} < "
                f"{self.min_frame_tokens}; raise the first or lower the second"
            )
        if self.budget_tokens < self.min_frame_tokens:
            raise ValueError(
                f"budget_tokens must hold one temporal patch of min_frame_tokens, got {self.budget_tokens} < "
                f"{self.min_frame_tokens}; raise the budget or lower min_frame_tokens"
            )


@dataclasses.dataclass(frozen=True)
class ZoomSettings:
    """What a checkpoint was trained with, stored beside its weights as zoomzero.json; the defaults are the method's."""

    coarse: PassSettings = PassSettings(budget_tokens=8192)
    """The first pass, over the whole video."""
    zoom: PassSettings = PassSettings(budget_tokens=4096, max_frames=256)
    """A pass inside spans of it."""
    prompts: Prompts = dataclasses.field(default_factory=Prompts)
    """What the passes ask."""
    kept_share: float = 0.1
    """Share of a zoom pass's budget for tokens of the first pass, averaged down, where a strategy keeps them."""

    def __post_init__(self) -> None:
        if not _is_number(self.kept_share) or not 0 <= self.kept_share < 1:
            raise ValueError(f"kept_share must be in [0, 1), got {self.kept_share!r:.80}; 0 keeps none")
        if self.coarse.context_fraction:
            raise ValueError(
                "ZoomSettings: the coarse pass sees the whole video and has no context_fraction, got "
                f"{self.coarse.context_fraction}; set it for the zoom pass"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        write_whole(Path(folder, SETTINGS_FILE), json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> ZoomSettings:
        """Read zoomzero.json from a checkpoint's folder; the defaults if it has none.

        Raises:
            ValueError: the file is there but is not valid; names the file, the key, the rule and the value.
        """
        file = Path(folder, SETTINGS_FILE)
        if not file.exists():
            return ZoomSettings()
        data = _read_object(file)
        sections = ("coarse", "zoom", "prompts")
        _check_keys(file, "", data, required=sections, allowed=(*sections, "kept_share"))
        coarse, zoom = (_section(file, name, data[name], PassSettings) for name in ("coarse", "zoom"))
        prompts = _section(file, "prompts", data["prompts"], Prompts)
        try:
            return ZoomSettings(coarse, zoom, prompts, data.get("kept_share", ZoomSettings.kept_share))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def load_prompts(file: str | os.PathLike[str]) -> Prompts:
    """Templates from a JSON file: an object with the fields of `Prompts`, or a zoomzero.json, whose prompts are taken.

    Raises:
        ValueError: not such a file; names the file, the key, the rule and the value.
        OSError: the file cannot be read.
    """
    path = Path(file)
    data = _read_object(path)
    return _section(path, "prompts", data.get("prompts", data), Prompts)


def _read_object(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{file}: must have at most {MAX_FILE_BYTES} bytes, got more; restore or delete the file")
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid settings of zoomzero: {error}; restore or delete the file") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file}: must hold a JSON object, got {type(data).__name__}; restore or delete the file")
    return data


def _section(file: Path, name: str, data: object, kind: type[Section]) -> Section:
    """One object of the file as its dataclass, whose own checks name the field and the rule."""
    if not isinstance(data, dict):
        raise ValueError(f"{file}: {name} must be an object, got {data!r:.80}; restore or delete the file")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass's type
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    _check_keys(file, f"{name}.", data, required=required, allowed=[field.name for field in fields])
    try:
        return kind(**data)
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{file}: {text if text.startswith(f'{name}.') else f'{name}.{text}'}") from error


def _check_keys(file: Path, prefix: str, data: dict[str, Any], *, required: Any, allowed: Any) -> None:
    for key in required:
        if key not in data:
            raise ValueError(f"{file}: needs {prefix}{key}, which is not there; restore or delete the file")
    for key in data:
        if key not in allowed:
            raise ValueError(
                f"{file}: {prefix}{key:.80} is no setting, these are: {', '.join(allowed)}; correct the name"
            )
