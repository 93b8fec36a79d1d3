"""Positions in the history of a store, and the tokens of its commits.

A revision alone does not identify a position: a store that was emptied, restored from a copy, or that lost commits in a
failover reaches the same number again. So each commit has a random token, and each set of data an epoch.

Source: contract section 4, C17, C23.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from datasync.errors import CompactedError, InvalidArgumentError
from datasync.keyval.types import RewoundError

#: Positions that a store remembers: enough for all readers that are between two streams.
MAX_POSITIONS = 256
_RANDOM_BYTES = 8


class Position(NamedTuple):
    """A commit that was read: its revision, its token, and the epoch of the data.

    *token* is empty when the store no longer has the commit, or never told its token. *epoch* is whatever a driver
    uses to identify its set of data, and is compared for equality only.
    """

    revision: int
    token: str = ""
    epoch: str | int = ""

    def check(self, found: Position, name: str) -> None:
        """Raise ``RewoundError`` if the store *name* has *found* at this revision and that is another commit."""
        if self.epoch != found.epoch or (self.token and found.token and self.token != found.token):
            raise RewoundError(f"{name}: revision {self.revision} has changed since it was read")


class Positions:
    """The positions of recently read revisions, by which a stream recognises another history under the same number.

    Threads: any; takes no lock, because a stream that is collected calls it. Each step is atomic.
    """

    def __init__(self) -> None:
        self._known: dict[int, Position] = {}

    def note(self, position: Position) -> None:
        """Remember *position* as the last one read for its revision; one without a token is forgotten."""
        self._known.pop(position.revision, None)
        if position.token:
            self._known[position.revision] = position
        for oldest in list(self._known)[:-MAX_POSITIONS]:
            self._known.pop(oldest, None)

    def of(self, revision: int) -> Position | None:
        """Return the remembered position of *revision*, or None."""
        return self._known.get(revision)


def new_token(after: int) -> str:
    """Return the token of a new commit that follows the revision *after*, the highest one that its writer knows."""
    return f"{after}-{os.urandom(_RANDOM_BYTES).hex()}"


def check_token(token: object) -> int:
    """Return the revision after which the commit of *token* was sent. Raises ``InvalidArgumentError``."""
    if isinstance(token, str):
        after, dash, random = token.partition("-")
        if dash and after.isascii() and after.isdigit() and len(random) == 2 * _RANDOM_BYTES:
            return int(after)
    raise InvalidArgumentError("a token is that of an UnknownOutcome error of this store")


def check_remembered(token: str, oldest: int, name: str) -> None:
    """Raise ``CompactedError`` if the history, which does not have *token*, begins after it may have been written."""
    if check_token(token) + 1 < oldest:
        raise CompactedError(f"{name}: the history that would have the commit was trimmed", oldest)
