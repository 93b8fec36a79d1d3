"""The transactions that a reader passes from a store to a registry, and the results that a writer receives.

Source: contract C1, C4, C13, C21.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from datasync.errors import InvalidArgumentError
from datasync.events import ResyncReason


class Commit(NamedTuple):
    """One transaction of a store: *ops* are (key, value) in its order, None for a delete, each key once."""

    revision: int
    ops: Sequence[tuple[str, bytes | None]]

    def __repr__(self) -> str:
        return f"Commit(revision={self.revision}, keys={[key for key, _ in self.ops]!r})"


class Batch(NamedTuple):
    """Whole commits in order, and the revision up to which the stream is complete with them.

    A batch without commits is a bookmark: there were no other changes up to *revision*.
    """

    revision: int
    commits: Sequence[Commit]


class ReaderSink(Protocol):
    """The receiver of a reader, such as a ``syncbase.Registry``. Called from the reader's thread only."""

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        """Take the full state: key to (revision, value). The sink keeps the dict."""

    def feed_changes(self, batch: Batch) -> None:
        """Take commits that follow the last snapshot or batch without a gap."""

    def source_lost(self, error: BaseException) -> None:
        """Note that the store cannot be read; the next snapshot or batch means that it can be read again."""


class MirrorPosition(NamedTuple):
    """A revision of a source, and how often the source went back in time before: it counts anew after each time."""

    rewinds: int
    revision: int


class HasRevision(Protocol):
    """The result of a write: of a ``put``, a ``delete``, or the ``commit`` of a transaction."""

    @property
    def revision(self) -> int: ...


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The result of a ``put`` or ``delete``, true if it changed anything: a ``delete`` that found no key is false.

    *revision* is that of the store or server after the write, for ``wait_for`` and ``wait_synced``; 0 when it has none.
    *changed* is the truth value. Source: contract C17, C21.
    """

    revision: int
    changed: bool = True
    #: The position of the writer's own mirror just before the write, which reveals that the store went back meanwhile.
    seen: MirrorPosition | None = field(default=None, repr=False, compare=False)
    #: After a delete that found nothing, in a store that tells its revision rarely: the keys that the mirror still had.
    #: It need only lose these to agree.
    gone: tuple[str, ...] | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.changed


def revision_of(write: int | HasRevision) -> int:
    """Return the revision in the result of a write, or *write* itself. Raises ``InvalidArgumentError``."""
    revision = write if isinstance(write, int) else getattr(write, "revision", None)
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 0:
        raise InvalidArgumentError(
            f"a revision is a number from 0, or the result of a write, not {type(write).__name__}"
        )
    return revision


#: Called with each write of the code that runs: the registry of the writer, the key, the revision, and True when every
#: key that begins with it was deleted.
OwnWriteObserver = Callable[[object, str, int, bool], None]
_observer: ContextVar[OwnWriteObserver | None] = ContextVar("datasync_own_writes", default=None)


def observe_own_writes(observer: OwnWriteObserver) -> None:
    """Call *observer* for the writes that this thread makes from now on."""
    _observer.set(observer)


def note_own_write(mirror: object, key: str, revision: int, *, prefix: bool = False) -> None:
    """Tell the observer of this thread, if there is one, that *key* was written."""
    observer = _observer.get()
    if observer is not None:
        observer(mirror, key, revision, prefix)
