"""What a fuzz target is, and what it may answer."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar

from datasync.errors import DatasyncError
from tests.security.fuzz.supply import SECRET


class Finding(AssertionError):
    """The rule that a target checks was broken without any exception of the library's."""


class Target(ABC):
    """One parser of outside bytes. A context manager that holds what its runs share."""

    #: For ``--target``.
    name: ClassVar[str]
    #: One line for ``--list``.
    about: ClassVar[str]
    #: Examples in a run of the tests; those that use a network are slower.
    examples: ClassVar[int] = 300

    def open(self) -> None:
        """Make what all runs share."""

    def close(self) -> None:
        """Take it down."""

    @abstractmethod
    def run(self, data: bytes) -> None:
        """One execution. Whatever it raises is a finding."""

    def __enter__(self) -> Target:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def only(*kinds: type[BaseException], secret: str = SECRET) -> Iterator[None]:
    """Let pass the errors of *kinds* (``DatasyncError`` unless told), if they and their causes do not tell *secret*."""
    expected = kinds or (DatasyncError,)
    try:
        yield
    except expected as error:
        refuse_secrets("".join(traceback.format_exception(error, chain=True)), secret)


def refuse_secrets(told: str, secret: str = SECRET) -> None:
    """Raise ``Finding`` when *told* holds *secret*, in any of the usual spellings."""
    # The frames of a traceback quote source lines, never data: only what an exception says can hold the secret.
    if secret in told or secret.encode().hex() in told:
        raise Finding(f"it tells a secret: {told[-400:]!r}")


__all__ = ["SECRET", "Finding", "Target", "only", "refuse_secrets"]
