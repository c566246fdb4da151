"""The private hooks of TRL's trainers that the mixins override, and the check that a class really reaches them."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any

# What the mixins were run against, release by release; the package's own trainer asks for less.
MIXINS_TRL = "trl>=1.14,<1.17"


def supported_trl() -> str:
    """The releases of TRL that the package asks for, as pip takes them: those its own trainer was written for."""
    (asked, *_) = [line for line in importlib.metadata.requires("zoomzero") or () if line.startswith("trl")]
    return asked.partition(";")[0].strip()


def require_hooks(mixin: type, cls: type, hooks: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a class in which a mixin would silently do nothing: behind the trainer, or with another TRL.

    hooks: the methods that the mixin overrides, and the first arguments that each must have behind the mixin.

    Raises:
        TypeError: a trainer in front of the mixin defines one of the methods, or the trainer behind it has not all.
    """
    place = cls.__mro__.index(mixin)
    ahead, behind = cls.__mro__[:place], cls.__mro__[place + 1 :]
    for base in ahead:
        # Another mixin may stand in front: it has no training_step, and calls on.
        is_trainer = hasattr(base, "training_step") and not issubclass(base, mixin)
        if is_trainer and any(name in vars(base) for name in hooks):
            raise TypeError(
                f"{mixin.__name__}: the mixin must stand before {base.__name__} in the bases, got it after in "
                f"{cls.__name__}; write class {cls.__name__}({mixin.__name__}, {base.__name__})"
            )
    trainers = [base for base in behind if "training_step" in vars(base)]
    for name, arguments in hooks.items() if trainers else ():
        found = [vars(base)[name] for base in behind if name in vars(base)]
        signature = tuple(inspect.signature(found[0]).parameters)[1:] if found else None
        if signature is None or signature[: len(arguments)] != arguments:
            raise TypeError(
                f"{mixin.__name__}: the trainer must have a method {name}({', '.join(arguments)}), got {signature} in "
                f"{trainers[0].__name__}; use GRPOTrainer of {MIXINS_TRL}"
            )


def refuse_compilation(mixin: type, arguments: Any) -> None:
    """ValueError where GRPOConfig asks for torch.compile: a compiled forward does not see hooks that come and go."""
    if arguments.torch_compile:
        raise ValueError(
            f"{mixin.__name__}: torch_compile must be off, since a compiled model passes the mixin's hooks by, got "
            "torch_compile=True in GRPOConfig; turn it off or train without the mixin"
        )
