"""Checks that other people's packages still are as this one was written for.

Some of what we stand on is not public and moves between releases, and a silent mismatch would train on wrong tensors. A
contract is a list of such parts; it is checked where they are first used, and by a test.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True)
class Contract:
    """Whose contract it is.

    who: begins the messages; package: whose release is named; remedy: what to do.
    """

    who: str
    package: str
    remedy: str

    def broken(self, rule: str, found: object) -> RuntimeError:
        """The error that says which rule a release does not keep."""
        try:
            release = version(self.package)
        except PackageNotFoundError:
            release = "of unknown release"
        return RuntimeError(f"{self.who}: {rule}, got {found} in {self.package} {release}; {self.remedy}")

    def method(self, owner: type, name: str, expected: Sequence[str], *, shown: str | None = None) -> None:
        """RuntimeError unless `owner` has the method with exactly these parameters after self."""
        method = getattr(owner, name, None)
        found = tuple(inspect.signature(method).parameters)[1:] if method is not None else None
        if found != tuple(expected):
            raise self.broken(f"{shown or owner.__name__}.{name} must take {tuple(expected)}", found)

    def call(self, function: Any, shown: str, needed: Sequence[str]) -> None:
        """RuntimeError unless `function` is there and takes at least these arguments."""
        if function is None:
            raise self.broken(f"{shown} must be there", "none")
        parameters = inspect.signature(function).parameters
        any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        if missing := [name for name in needed if name not in parameters and not any_name]:
            raise self.broken(f"{shown} must take {', '.join(missing)}", tuple(parameters))

    def fields(self, owner: type, needed: Sequence[str]) -> None:
        """RuntimeError unless a dataclass has these fields."""
        found = {field.name for field in dataclasses.fields(owner)}
        if missing := [name for name in needed if name not in found]:
            raise self.broken(f"{owner.__name__} must have {', '.join(missing)}", "none")

    def attribute(self, owner: object, name: str, shown: str) -> Any:
        """RuntimeError unless `owner` has the attribute, which is returned."""
        if not hasattr(owner, name):
            raise self.broken(f"{shown} must be there", "none")
        return getattr(owner, name)
