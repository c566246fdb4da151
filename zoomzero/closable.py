"""What is closed by `close` or by the end of a with block."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Self


class Closable(abc.ABC):
    """A context manager whose end is its `close`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release what it holds; twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
