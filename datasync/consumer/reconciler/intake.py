"""Events of any watcher, taken over as wanted values.

A RESYNC is acknowledged as soon as its pairs are taken over: applying them may take minutes, and until it is
acknowledged no change could come in. A CHANGE is acknowledged when its keys had their call, so that a caller that waits
is told.

Source: contract C2, C7, C10, C12, C20.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Queue
from typing import Any

from datasync.api import DEFAULT_NOTIF_TIMEOUT, WatchRegistration
from datasync.codecs.api import Codec
from datasync.consumer.pairs import raw
from datasync.consumer.reconciler.answers import Answer
from datasync.consumer.reconciler.applied import Applied
from datasync.consumer.reconciler.depends import Dependencies
from datasync.consumer.reconciler.work import Work
from datasync.context import current_source
from datasync.errors import DecodeError, Permanent, Rejected
from datasync.events import ChangeEvent, KeyVal, Op, ResyncEvent
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag
from datasync.runtime.wording import counted

log = get_logger(__name__)

#: Pairs of a RESYNC that are taken over at once; between two such chunks the workers go on.
CHUNK = 500


class Inbox(Queue[Any]):
    """A queue that wakes its reader through a flag, so that it can wait for the clock too."""

    def __init__(self) -> None:
        super().__init__()
        self.wake = Flag()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self.wake.set()


def count_sources(registration: WatchRegistration) -> int:
    """Return the number of sources behind *registration*."""
    members = getattr(registration, "registrations", None)  # of an aggregate, which may have aggregates
    return 1 if members is None else sum(map(count_sources, members))


class _Unreadable:
    """The keys of one event that have no bytes which the codec could read: they are rejected, and nothing else is."""

    def __init__(self) -> None:
        self.errors: dict[str, BaseException] = {}

    @property
    def rejected(self) -> Rejected | None:
        return Rejected(self.errors) if self.errors else None


class Intake:
    """Takes events over into *work*.

    Args:
      others: The values of the keys that others depend on.
      lock: Guards *work* and *others*.
      sources: The number of sources. What earlier processes applied may be gone only when all have sent their state.
      wake: Wakes the workers; called without the lock.

    Threads: one at a time.
    """

    def __init__(
        self,
        name: str,
        prefixes: tuple[str, ...],
        codec: Codec[Any],
        depends: Dependencies,
        work: Work,
        others: Applied,
        lock: threading.RLock,
        sources: int,
        wake: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._name = name
        self._prefixes = prefixes
        self._codec = codec
        self._depends = depends
        self._work = work
        self._others = others
        self._lock = lock
        self._expected = sources
        self._wake = wake
        self._now = now
        self._told: set[str] = set()  # sources that sent a RESYNC
        self._heard: set[str] = set()  # sources that sent anything
        self._listed = set(others.keys())  # that no source has reported yet

    @property
    def heard(self) -> bool:
        """True once every source has sent an event."""
        return len(self._heard) >= self._expected

    @property
    def complete(self) -> bool:
        """True once every source has sent its full state."""
        return len(self._told) >= self._expected

    def take(self, event: ChangeEvent | ResyncEvent, *, late: bool) -> Answer | None:
        """Take *event* over. Return the answer that waits for the calls; None when the event was answered.

        Args:
          late: False to answer a CHANGE at once too, because nobody can say when its keys will be called.
        """
        source = event.get_context().run(current_source.get)
        if isinstance(event, ResyncEvent):
            rejected = self._take_resync(event, source)
            with self._lock:
                self._heard.add(source)
            answer = None
            event.done(rejected)
        else:
            answer, rejected = self._take_change(event, source, late)
            with self._lock:
                self._heard.add(source)
            if answer is None:
                event.done(rejected)
        self._wake()
        return answer

    def _take_change(self, event: ChangeEvent, source: str, late: bool) -> tuple[Answer | None, Rejected | None]:
        bad = _Unreadable()
        changes = [(change.get_key(), self._value(change, bad)) for change in event.get_changes()]
        changes = [(key, data) for key, data in changes if key not in bad.errors]
        own = [(key, data) for key, data in changes if self._ours(key)]
        answer = None
        with self._lock:
            if late and own:
                deadline = self._now() + DEFAULT_NOTIF_TIMEOUT
                answer = Answer(event, len(own), deadline, self._work.outbox, bad.errors)
            if not event.redelivery:  # whose revision may be ahead of what else was delivered
                self._work.delivered(source, event.revision)
            for key, data in own:
                self._work.offer(key, data, live=True, answer=answer, redelivery=event.redelivery)
        for key, data in changes:
            if not self._ours(key):
                self._depend(key, data, live=True)
        return answer, bad.rejected

    def _take_resync(self, event: ResyncEvent, source: str) -> Rejected | None:
        first = source not in self._told
        bad = _Unreadable()
        values = event.get_values()
        # Other keys first: what depends on them and is new comes with its own prefix, and then in one call.
        for prefix in self._depends.prefixes:
            for pair in values.get(prefix, ()):
                key, data = pair.get_key(), self._value(pair, bad)
                if key not in bad.errors:
                    self._depend(key, data, live=False)
        for prefix in self._prefixes:
            for chunk in _chunks(values.get(prefix, ())):
                found = [(pair.get_key(), self._value(pair, bad)) for pair in chunk]
                with self._lock:
                    for key, data in found:
                        if key in bad.errors:
                            continue
                        self._work.offer(key, data, live=False)
                        if first and key in self._work.queue:
                            self._work.first_pass.add(key)
                self._wake()
        removed = [pair.get_key() for pair in event.get_removed()]
        with self._lock:
            self._told.add(source)
            self._work.delivered(source, event.revision)
            self._work.claim(bad.errors)
            held = self._work.offer_deletes(filter(self._ours, removed), complete=self.complete)
        if held:
            log.warning(
                "%s: a full state lacks %s, first %r: more than max_delete; they are held until release()",
                self._name, counted(len(held), "key"), held[0],
            )  # fmt: skip
        for key in removed:
            if not self._ours(key):
                self._depend(key, None, live=False)
        if self.complete:
            listed, self._listed = self._listed, set()
            for key in listed:
                self._depend(key, None, live=False)
        return bad.rejected

    def _value(self, pair: KeyVal, bad: _Unreadable) -> bytes | None:
        """Return the bytes of a pair or change; None for a delete, and for one that is *bad*."""
        deleted = getattr(pair, "get_change_type", None)
        if deleted is not None and deleted() is Op.DELETE:
            return None
        key = pair.get_key()
        try:
            return raw(pair, self._codec if self._ours(key) else self._depends.codec_of(key))
        except DecodeError as error:
            log.warning("%s: %r keeps the value that it has: %s", self._name, key, error)
            bad.errors[key] = Permanent(str(error))
            return None

    def _depend(self, key: str, data: bytes | None, *, live: bool) -> None:
        """Have the keys looked at that depend on *key*, with its old value or with the new one."""
        self._listed.discard(key)
        with self._lock:
            if self._others.matches(key, data):
                return
            known, old = key in self._others, self._others.get(key)
        keys: set[str] | None = None
        if not known or old is not None:
            keys = self._depends.keys_of(key, old, data)
        else:
            log.info("%s: %r changed while nothing watched it, so every key is looked at", self._name, key)
        with self._lock:
            owed = self._work.known(None if keys is None else filter(self._ours, keys))
        for one in owed:  # before the file knows the new value: who starts next must call them
            self._others.write_doubt(one)
        self._others.write_accepted(key, data)
        with self._lock:
            self._others.accept(key, data)
            self._work.request(owed, live=live)

    def _ours(self, key: str) -> bool:
        """True for a key to be applied, False for one that others depend on, by the longest prefix that matches."""
        return not self._depends.prefixes or not self._depends.match(key, self._prefixes)


def _chunks(pairs: Iterable[KeyVal]) -> Iterator[list[KeyVal]]:
    iterator = iter(pairs)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
