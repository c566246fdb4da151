"""A cache of tensors, or of what holds them, bounded in bytes: the least recently used entries leave first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteBoundedCache(Generic[Value]):
    """Keeps at most `max_bytes` of values.

    size_of: bytes of a value; dropped: called with a value that leaves (to close files). A value above the bound is
    kept until the next one arrives, so that what was just put can be used.
    """

    def __init__(
        self, max_bytes: int, size_of: Callable[[Value], int], dropped: Callable[[Value], None] | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._size_of = size_of
        self._dropped = dropped
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        """Whether the value is there; asking does not count as using it."""
        return key in self._values

    def get(self, key: Hashable) -> Value | None:
        """The value, which counts as used now, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Add or replace a value, dropping the least recently used ones beyond the bound."""
        if key in self._values:
            self._drop(key)
        self._values[key] = value
        self.num_bytes += self._size_of(value)
        while self.num_bytes > self.max_bytes and len(self._values) > 1:
            self._drop(next(iter(self._values)))

    def clear(self) -> None:
        """Drop all values."""
        for key in list(self._values):
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        value = self._values.pop(key)
        self.num_bytes -= self._size_of(value)
        if self._dropped is not None:
            self._dropped(value)
