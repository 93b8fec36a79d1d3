"""What the tests of stores share: a stream read in a thread, and histories folded to states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

from datasync.commits import Batch
from datasync.keyval.api import Store
from datasync.keyval.driver import Stream
from datasync.runtime.threads import Worker
from tests.conftest import take

#: Put on a ``Following``'s queue when its stream ended without an error.
END = "ended"


class Following:
    """Reads a stream in a thread: its batches, and at last ``END`` or the error, come out of ``queue``."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.queue: Queue[Any] = Queue()
        self._worker = Worker("test-following", self._follow, wake=stream.cancel)
        self._worker.start()

    def _follow(self, worker: Worker) -> None:
        try:
            for batch in self.stream:
                if batch is not None:
                    self.queue.put(batch)
            self.queue.put(END)
        except Exception as error:
            self.queue.put(error)

    def until(self, revision: int) -> list[Batch]:
        """The batches up to *revision*."""
        batches: list[Batch] = []
        while not batches or batches[-1].revision < revision:
            item = take(self.queue)
            assert isinstance(item, Batch), f"the stream ended early: {item!r}"
            batches.append(item)
        return batches

    def ending(self) -> Any:
        """How the stream ended: ``END`` or the error; the batches before it are skipped."""
        while isinstance(item := take(self.queue), Batch):
            pass
        return item

    def close(self) -> None:
        assert self._worker.close()


@contextmanager
def following(store: Store, prefix: str, after: int) -> Iterator[Following]:
    """A :class:`Following` that is closed at the end."""
    follower = Following(store.stream(prefix, after))
    try:
        yield follower
    finally:
        follower.close()


def state(store: Store, prefix: str = "") -> dict[str, bytes]:
    """All pairs of *store* under *prefix*."""
    return {pair.key: pair.value for pair in store.scan(prefix)}


def fold(batches: Iterable[Batch], start: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """*start* after all *batches*; fails when a revision does not grow, or a key stands twice in a commit."""
    values, last = dict(start or {}), 0
    for batch in batches:
        for commit in batch.commits:
            assert last < commit.revision <= batch.revision, "revisions only grow"
            last = commit.revision
            keys = [key for key, _ in commit.ops]
            assert len(keys) == len(set(keys)), f"a key stands twice in {commit!r}"
            for key, value in commit.ops:
                if value is None:
                    assert key in values, f"a delete of {key!r}, which was not there, is in the history"
                    del values[key]
                else:
                    values[key] = value
    return values


def all_after(store: Store, prefix: str, after: int, revision: int) -> list[Batch]:
    """The batches of a new stream up to *revision*, read in this thread."""
    stream, batches = store.stream(prefix, after), []
    for batch in stream:
        if batch is not None:
            batches.append(batch)
            if batch.revision >= revision:
                stream.cancel()
    return batches
