"""The stream of a store without history: the difference between two pictures of a prefix is one commit.

A driver gives a :class:`PictureSource`; the rest is here. A picture that was listed or streamed is remembered for each
store object and prefix, so that a stream continues after a break with one commit, without a RESYNC.

Source: contract C3, C13, I3; cn-infra ``db/keyval/filedb``, ``db/keyval/consul``.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from datasync.commits import Batch, Commit
from datasync.errors import CompactedError, DatasyncError
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.types import KeyValue, RewoundError
from datasync.runtime.threads import ForkGuard

#: Seconds after which an idle stream yields None.
IDLE = 1.0
#: Prefixes of a store object whose pictures are remembered, those used last.
KEPT_PREFIXES = 64
#: Pictures that are remembered for each prefix: two readers need not be at the same one.
KEPT_PICTURES = 2


class Picture(NamedTuple):
    """All pairs of a prefix at one time: *pairs* maps each key to its pair.

    *revision* grows with each picture that differs from the one before. A pair that has a revision differs as soon as
    that does, with the same value too.
    """

    revision: int
    pairs: Mapping[str, KeyValue]

    def __repr__(self) -> str:
        return f"<Picture of {len(self.pairs)} keys at revision {self.revision}>"


class PictureSource(ABC):
    """The state of one prefix, as a driver reads it. One thread reads and waits; any thread may call ``wake``."""

    @abstractmethod
    def picture(self) -> Picture:
        """Return the pairs now. Raises what keeps the store from being read; never an incomplete picture.

        Raises:
          RewoundError: The store went back in time.
          ClosedError: The store was closed.
        """

    @abstractmethod
    def wait(self, seconds: float) -> bool:
        """Wait for a change, at most about *seconds*, and return True if there may be one. Raises as ``picture``."""

    @abstractmethod
    def wake(self) -> None:
        """End a ``wait``, also the next one, soon. May be called twice; blocks on nothing."""

    def close(self) -> None:
        """Release what the source holds: its stream has ended. Called by the thread that reads."""


class PairMarks(dict[str, int | bytes]):
    """Key to what identifies the state of its pair.

    That is the value, which the driver or its subscribers hold anyway; of a pair with a revision a hash of both, since
    a store that was restored from a copy may give the same revision to another value.
    """

    __slots__ = ()

    @classmethod
    def of(cls, pairs: Mapping[str, KeyValue]) -> PairMarks:
        return cls(
            {key: hash((pair.revision, pair.value)) if pair.revision else pair.value for key, pair in pairs.items()}
        )

    def __repr__(self) -> str:
        return f"<the marks of {len(self)} keys>"


class KnownPictures:
    """The pictures of a store object that its streams can continue from. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _kept
        # Prefix to {revision: marks}; what was used last is at the end.
        self._kept: OrderedDict[str, OrderedDict[int, PairMarks]] = OrderedDict()

    def note(self, prefix: str, revision: int, marks: PairMarks) -> None:
        """Remember the picture of *prefix* at *revision*."""
        with self._lock:
            pictures = self._kept.setdefault(prefix, OrderedDict())
            pictures[revision] = marks
            pictures.move_to_end(revision)
            self._kept.move_to_end(prefix)
            while len(pictures) > KEPT_PICTURES:
                pictures.popitem(last=False)
            while len(self._kept) > KEPT_PREFIXES:
                self._kept.popitem(last=False)

    def find(self, prefix: str, revision: int) -> PairMarks | None:
        """Return the picture of *prefix* at *revision*, or None if it is not remembered."""
        with self._lock:
            pictures = self._kept.get(prefix)
            return None if pictures is None else pictures.get(revision)

    def latest(self, prefix: str) -> tuple[int, PairMarks] | None:
        """Return revision and picture of *prefix* that were remembered last, or None."""
        with self._lock:
            pictures = self._kept.get(prefix)
            return None if not pictures else next(reversed(pictures.items()))

    def forget(self) -> None:
        """Forget all pictures, because the store is another one now: every stream must list again."""
        with self._lock:
            self._kept.clear()


class PictureScan(Scan):
    """The listing of a picture, from which a stream can continue."""

    def __init__(self, known: KnownPictures, prefix: str, picture: Picture, *, keys_only: bool = False) -> None:
        self.revision = picture.revision
        self._pairs = picture.pairs
        self._keys_only = keys_only
        if not keys_only:  # nobody follows such a listing
            known.note(prefix, picture.revision, PairMarks.of(picture.pairs))

    def __iter__(self) -> Iterator[KeyValue]:
        for key in sorted(self._pairs):
            pair = self._pairs[key]
            yield pair._replace(value=b"") if self._keys_only else pair


class DiffStream(Stream):
    """The differences between the pictures of *source*, from the picture of revision *after* on.

    Each difference is one commit: its deletes, then its puts, each in key order. What happened between two pictures
    comes as its net effect. The first batch has what changed since *after*.

    Raises while it iterates, beside what *source* raises:
      CompactedError: The picture of *after* is not remembered, and is not that of now: list again.
      RewoundError: The source's revision did not grow with a difference.

    Threads: one iterates; any may call ``cancel``.
    """

    def __init__(self, source: PictureSource, known: KnownPictures, prefix: str, after: int, *, name: str) -> None:
        self._source = source
        self._known = known
        self._prefix = prefix
        self._position = after
        # Taken now: until the iteration begins, other listings may push it out.
        self._marks = known.find(prefix, after)
        self._name = name
        self._guard = ForkGuard(f"a stream of {name}")
        self._cancelled = False

    def cancel(self) -> None:
        if self._guard.forked:
            return
        self._cancelled = True
        self._source.wake()

    def __iter__(self) -> Iterator[Batch | None]:
        try:
            if self._cancelled:
                return
            self._guard.check()
            yield self._next()
            while not self._cancelled:
                if not self._source.wait(IDLE):
                    if not self._cancelled:
                        yield None
                    continue
                before = self._position
                batch = self._next()
                if batch.revision != before:
                    yield batch
        except DatasyncError:
            if not self._cancelled:  # otherwise this is the requested end
                raise
        finally:
            self._source.close()

    def _next(self) -> Batch:
        """Return the difference between the picture that is known and the one of now, and continue from there."""
        picture = self._source.picture()
        revision = picture.revision
        if revision < self._position:
            raise RewoundError(f"{self._name} is at revision {revision}, below {self._position}")
        if self._marks is None and revision > self._position:
            raise CompactedError(f"{self._name}: what was listed at revision {self._position} is not known any more")
        if revision == self._position and self._marks is not None:
            return Batch(revision, ())
        marks = PairMarks.of(picture.pairs)
        ops = [] if self._marks is None else list(difference(self._marks, marks, picture.pairs))
        # Noted before the batch is delivered: a reader that breaks in between asks for the picture before this one.
        self._position, self._marks = revision, marks
        self._known.note(self._prefix, revision, marks)
        return Batch(revision, [Commit(revision, ops)] if ops else ())


def difference(
    before: PairMarks, after: PairMarks, pairs: Mapping[str, KeyValue]
) -> Iterable[tuple[str, bytes | None]]:
    """Return the operations that lead from *before* to *after*, the marks of *pairs*: deletes first, in key order."""
    for key in sorted(before.keys() - after.keys()):
        yield key, None
    for key in sorted(key for key, mark in after.items() if key not in before or before[key] != mark):
        yield key, pairs[key].value
