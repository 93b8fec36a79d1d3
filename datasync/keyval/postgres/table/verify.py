"""Comparing a table with what its log has told, to find what happened without the trigger or the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from datasync.commits import Batch
from datasync.errors import CompactedError
from datasync.keyval.diff_stream import KnownPictures, PairMarks
from datasync.keyval.driver import Scan
from datasync.keyval.types import KeyValue


class MarkedScan(Scan):
    """A listing under *prefix* that leaves the marks of its pairs in *known* when it is complete."""

    def __init__(self, scan: Scan, known: KnownPictures, prefix: str) -> None:
        self.revision = scan.revision
        self._scan = scan
        self._known = known
        self._prefix = prefix

    def __iter__(self) -> Iterator[KeyValue]:
        marks = PairMarks()
        for pair in self._scan:
            marks[pair.key] = hash(pair.value)
            yield pair
        self._known.note(self._prefix, self.revision, marks)


class Verification:
    """The marks of the pairs under *prefix* that a stream has delivered, and when they are compared next.

    A mark is a hash of the value: some 100 bytes a key. Without marks, the first comparison makes them.
    """

    def __init__(self, known: KnownPictures, prefix: str, after: int, interval: float) -> None:
        self._known = known
        self._prefix = prefix
        self._interval = interval
        self._marks = known.find(prefix, after)
        if self._marks is not None:
            self._marks = PairMarks(self._marks)  # another stream may have the same ones
        self._due = time.monotonic() + interval

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def deliver(self, batch: Batch) -> None:
        """Note what *batch* changes."""
        if self._marks is None:
            return
        for commit in batch.commits:
            for key, value in commit.ops:
                if value is None:
                    self._marks.pop(key, None)
                else:
                    self._marks[key] = hash(value)

    def compare(self, pages: Iterable[Iterable[tuple[str, bytes]]], name: str) -> Iterator[None]:
        """Compare with all pairs, which *pages* has; yield after each page.

        Raises:
          CompactedError: The pairs are not those that were delivered.
        """
        found = PairMarks() if self._marks is None else self._marks
        number = 0
        for page in pages:
            for key, value in page:
                number += 1
                if self._marks is None:
                    found[key] = hash(value)
                elif self._marks.get(key) != hash(value):
                    raise _unlike(name, key)
            yield
        if number != len(found):
            raise _unlike(name, "")
        self._marks = found
        self._due = time.monotonic() + self._interval

    def keep(self, revision: int) -> None:
        """Leave the marks to the stream that continues from *revision*."""
        if self._marks is not None:
            self._known.note(self._prefix, revision, self._marks)


def _unlike(name: str, key: str) -> CompactedError:
    what = f"the row of {key!r} is not what" if key else "rows are missing that"
    return CompactedError(f"{name}: {what} the log told: it was changed without the trigger. List it again")
