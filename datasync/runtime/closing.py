"""The ``with`` statement for classes that have a ``close()``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

ClosableT = TypeVar("ClosableT", bound="Closable")


class Closable(ABC):
    """A context manager that closes itself at the end of the block and passes exceptions on."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Release everything; may be called twice."""

    def __enter__(self: ClosableT) -> ClosableT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
