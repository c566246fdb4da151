"""Command-line options made of the fields of a settings dataclass: type, default and help each stand there once."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


def add_fields(parser: argparse.ArgumentParser, settings: type, flags: Mapping[str, str]) -> None:
    """Add an option for every field of the dataclass `settings`.

    flags: options that are not called as their field, by field. A switch that is on by default gets an option that
    turns it off, --no-<field> unless told. A number that may be None takes 0 for None.
    """
    kinds = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        help_text = field.metadata["help"]
        text = help_text[0].lower() + help_text[1:].rstrip(".")
        name = field.name.replace("_", "-")
        if isinstance(field.default, bool):
            flag = flags.get(field.name, f"--no-{name}" if field.default else f"--{name}")
            action = "store_false" if field.default else "store_true"
            text = f"off: {text}" if field.default else text
            parser.add_argument(flag, dest=field.name, action=action, help=text)
            continue
        kind, optional = _without_none(kinds[field.name])
        shown = "%(default)s"
        if optional and kind is not str:
            text, shown = f"{text}, 0 for none", shown if field.default is not None else "none"
        elif optional:
            shown = ""
        choices = field.metadata.get("choices")
        metavar = flags.get(field.name, name).lstrip("-").replace("-", "_").upper()
        parser.add_argument(
            flags.get(field.name, f"--{name}"),
            dest=field.name,
            type=kind,
            default=field.default,
            choices=choices or None,
            metavar=metavar,
            help=f"{text} ({shown})" if shown else text,
        )


def field_values(options: argparse.Namespace, settings: type) -> dict[str, Any]:
    """What the options of `add_fields` were set to, by field."""
    kinds = typing.get_type_hints(settings)
    values = {}
    for field in dataclasses.fields(settings):
        value = getattr(options, field.name)
        _, optional = _without_none(kinds[field.name])
        values[field.name] = None if optional and value == 0 else value
    return values


def _without_none(kind: Any) -> tuple[Any, bool]:
    """The type on the command line, and whether the field may be None."""
    if isinstance(kind, types.UnionType):
        (inner,) = [part for part in kind.__args__ if part is not type(None)]
        return inner, True
    return kind, False
