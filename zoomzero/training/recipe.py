"""A training run as one YAML file: model, data and settings, parsed by TRL's own parser."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from zoomzero.limits import MAX_BAD_FRACTION
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.run import run_defaults
from zoomzero.training.settings import TrainingSettings
from zoomzero.training.sources import DataSource

# A recipe is a page of settings; what is longer is something else.
MAX_FILE_BYTES = 1 << 18


@dataclass
class Recipe:
    """What a recipe says beside the settings of `ZoomZeroConfig`."""

    out: str = field(default="", metadata={"help": "Folder of the trained checkpoint."})
    model: str | None = field(default=None, metadata={"help": "Start checkpoint: folder or hub name."})
    data: list[DataSource] = field(
        default_factory=list, metadata={"help": "Sources of the rows: format, root, split, share, video_root."}
    )
    steps: int = field(default=80, metadata={"help": "Training steps."})
    prompts: int = field(default=8, metadata={"help": "Prompts per step and process."})
    save_every: int = field(default=50, metadata={"help": "Steps between checkpoints, 0 for none."})
    keep_last: int = field(default=2, metadata={"help": "Checkpoints that stay, 0 for all."})
    lora: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Train LoRA adapters: fields of peft's LoraConfig, e.g. {r: 16, lora_alpha: 32}."},
    )
    max_bad_fraction: float = field(
        default=MAX_BAD_FRACTION, metadata={"help": "Share of a source's rows that may break a rule."}
    )

    def __post_init__(self) -> None:
        self.data = [DataSource.of(source) for source in self.data]

    def peft_config(self) -> Any:
        """peft's LoraConfig, None where all weights are trained.

        Raises:
            ValueError: not its fields.
            ImportError: peft is missing.
        """
        if self.lora is None:
            return None
        from peft import LoraConfig

        try:
            return LoraConfig(**{"task_type": "CAUSAL_LM", **self.lora})
        except TypeError as error:
            raise ValueError(f"'lora' must be fields of peft's LoraConfig, got {self.lora}: {error}") from None


def load_recipe(
    path: str | os.PathLike[str], changes: Mapping[str, Any] | None = None
) -> tuple[Recipe, ZoomZeroConfig]:
    """Read a recipe.

    Args:
        path: the YAML file: keys are the fields of `Recipe` and of `ZoomZeroConfig`.
        changes: values that take the place of the file's.

    Raises:
        ValueError: not a mapping, an unknown key (the nearest one is named), or a value that cannot be.
        OSError: the file cannot be read.
    """
    told = {**_read(Path(path)), **(changes or {})}
    _check_keys(told, str(path))
    if not told.get("out"):
        raise ValueError(f"{path}: 'out' must be the folder of the trained checkpoint, got none; add it, or out=FOLDER")
    if not isinstance(told.get("lora"), dict | None):
        raise ValueError(
            f"{path}: 'lora' must be a mapping of peft's LoraConfig, got {told['lora']!r:.200}; e.g. {{r: 16}}"
        )
    run = _parsed({name: value for name, value in told.items() if name in _names(Recipe)}, Recipe, str(path))
    settings = {name: value for name, value in told.items() if name not in _names(Recipe)}
    config = _parsed({**_defaults(run, settings, str(path)), **settings}, ZoomZeroConfig, str(path))
    return run, config


def change(text: str) -> tuple[str, Any]:
    """KEY=VALUE of the command line, its value read as YAML.

    Raises:
        ValueError: it has another form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"a change of a recipe must be KEY=VALUE, got {text!r:.200}; write e.g. learning_rate=2e-6")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} must have a value in YAML, got {value!r:.200}; {_first_line(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: a recipe must have at most {MAX_FILE_BYTES} bytes, got more; name a recipe")
    try:
        told = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: a recipe must be YAML, got something else ({_first_line(error)}); correct it"
        ) from None
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told):
        raise ValueError(f"{path}: a recipe must be a mapping of settings, got {type(told).__name__}; see configs/")
    return told


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]


def _names(kind: type) -> set[str]:
    return {part.name for part in dataclasses.fields(kind) if part.init}


def _check_keys(told: Mapping[str, Any], where: str) -> None:
    known = sorted(_names(Recipe) | _names(ZoomZeroConfig))
    for name in told:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.0)
            raise ValueError(f"{where}: {name!r:.80} must be a setting, got an unknown one; the nearest is {near[0]!r}")


def _defaults(run: Recipe, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What `train_config` sets for a run, a step's prompts divided over the accumulated micro-batches."""
    accumulation = int(settings.get("gradient_accumulation_steps", 1))
    if accumulation < 1 or run.prompts % accumulation:
        raise ValueError(
            f"{where}: prompts must be a multiple of gradient_accumulation_steps, got {run.prompts} and "
            f"{accumulation}; a micro-batch holds whole groups"
        )
    num_generations = int(settings.get("num_generations", TrainingSettings.num_generations))
    num_responses = run.prompts // accumulation * num_generations
    return run_defaults(run.out, run.steps, num_responses, run.save_every or None, run.keep_last or None)


def _parsed(told: Mapping[str, Any], kind: Any, where: str) -> Any:
    """An instance of the dataclass, made by TRL's parser, which turns texts into the fields' types."""
    parser = TrlParser(kind)
    parser.error = functools.partial(_refuse, where)  # type: ignore[method-assign]  # argparse would end the process
    plain = {name: str(value) if _is_number(value) else value for name, value in told.items()}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "recipe.yaml")
        file.write_text(yaml.safe_dump(plain), encoding="utf-8")
        (made,) = parser.parse_args_and_config(["--config", str(file)])
    return made


def _refuse(where: str, message: str) -> NoReturn:
    raise ValueError(f"{where}: {message.removeprefix('argument --')}; correct it")


def _is_number(value: Any) -> bool:
    """Numbers go as texts, since a parser takes a default of another type as it is."""
    return isinstance(value, int | float) and not isinstance(value, bool)
