"""From what a user says about the model to an engine, and what it will need before anything of it is loaded."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoomzero.answering.engine import Engine
    from zoomzero.prompts import Prompts

# Names of the languages' numbers on the command line, and torch's attribute.
DTYPES = ("float32", "bfloat16", "float16")
ENGINES = ("own", "vllm", "openai")
KEY_VARIABLE = "OPENAI_API_KEY"


def _option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field with its one line of documentation, which the command line shows as help."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and where and how it runs; what an engine does not know it refuses."""

    model: str | None = _option(None, "Checkpoint folder or hub name, the built-in tiny model unless told.")
    engine: str = _option(
        "own", "Where the model runs: own, in this process; vllm, in this process; openai, on a server.", ENGINES
    )
    device: str | None = _option(None, "Such as cpu or cuda; the GPU if there is one unless told.")
    dtype: str | None = _option(
        None, "Numbers of the weights; the checkpoint's own on a GPU, else float32, unless told.", DTYPES
    )
    attn: str | None = _option(
        None, "Attention of the vision tower, by transformers' name, such as sdpa; the project's own unless told."
    )
    device_map: str | None = _option(None, "Such as auto: spread the layers over devices; needs accelerate.")
    load_in_4bit: bool = _option(False, "Weights in 4 bits by bitsandbytes; not run by the project.")
    base_url: str | None = _option(None, f"For openai: the server's address up to /v1; {KEY_VARIABLE} may hold a key.")
    frames_as: str = _option("images", "For openai: send frames as images or as one video.", ("images", "video"))
    request_timeout: float = _option(600.0, "For openai: seconds per request.")

    def __post_init__(self) -> None:
        for name, choices in (("engine", ENGINES), ("dtype", (None, *DTYPES))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"answer: {name} must be one of {', '.join(str(choice) for choice in choices if choice)}, got "
                    f"{getattr(self, name)!r}; choose one"
                )
        own = {"attn": self.attn, "device_map": self.device_map, "load_in_4bit": self.load_in_4bit or None}
        local = {"device": self.device, "dtype": self.dtype, **own}
        for name, value in own.items() if self.engine == "vllm" else local.items() if self.engine == "openai" else ():
            if value is not None:
                raise ValueError(f"answer: {name} is not for the engine {self.engine}, got {value!r}; leave it out")
        if (self.base_url is None) != (self.engine != "openai"):
            raise ValueError(
                f"answer: the engine openai, and no other, needs base_url, got engine={self.engine!r} and "
                f"base_url={self.base_url!r}; give both or none"
            )
        if self.engine == "openai" and not self.model:
            raise ValueError("answer: a server needs the model's name as it knows it, got none; name it with --model")


def load_engine(options: ModelOptions, prompts: Prompts | None = None, *, device: str | None = None) -> Engine:
    """The engine that the options describe.

    Args:
        options: which model, where and how.
        prompts: templates instead of the checkpoint's own.
        device: where options name none.

    Raises:
        ValueError, OSError: the checkpoint cannot be used, or options do not fit each other.
        ImportError: what the engine needs is not installed.
    """
    if options.engine == "openai":
        return _served(options, prompts)
    import torch

    from zoomzero.answering.engine import ZoomZero
    from zoomzero.inputs import load_processor
    from zoomzero.models import load_model
    from zoomzero.models.loading import BUILT_IN

    path = BUILT_IN if options.model is None else options.model
    processor = load_processor(path)
    if prompts is not None:
        processor.settings = dataclasses.replace(processor.settings, prompts=prompts)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    where = options.device or (None if options.device_map else device)
    if options.engine == "vllm":
        from zoomzero.answering.backends.vllm import VllmLanguageModel

        model = load_model(path, where, dtype)
        # Its own language model is dropped there, so that the engine's class is told of the other before.
        return ZoomZero(model, processor, VllmLanguageModel(path, model))
    engine = ZoomZero(
        load_model(path, where, dtype, device_map=options.device_map, load_in_4bit=options.load_in_4bit), processor
    )
    if options.attn is not None:
        current = engine.model.config._attn_implementation
        engine.model.set_attn_implementation({"": current, "text_config": current, "vision_config": options.attn})
    return engine


def _served(options: ModelOptions, prompts: Prompts | None) -> Engine:
    """Budgets and templates come from a zoomzero.json where `model` is a folder that has one."""
    from zoomzero.answering.backends.openai import Server
    from zoomzero.answering.served import ServedModel
    from zoomzero.inputs import FramePlanner
    from zoomzero.settings import ZoomSettings

    settings = ZoomSettings.load(options.model) if options.model and os.path.isdir(options.model) else ZoomSettings()
    if prompts is not None:
        settings = dataclasses.replace(settings, prompts=prompts)
    key = os.environ.get(KEY_VARIABLE)
    server = Server(options.base_url or "", options.model or "", key, options.frames_as, options.request_timeout)
    return ServedModel(server, FramePlanner(settings))
