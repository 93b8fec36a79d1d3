"""Changes by programs without datasync: the server names changed keys, and a script puts what differs into the log.

The server's notice is only a wake-up: after each disconnection, and when the database was flushed, all keys are
compared. Changes of a key that follow one another faster than that are delivered as one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from datasync.errors import DatasyncError
from datasync.keyval.positions import new_token
from datasync.keyval.redis import scripts
from datasync.keyval.redis.client import RedisClient
from datasync.keyval.redis.errors import Elsewhere
from datasync.keyval.redis.link import Link
from datasync.runtime.backoff import Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Worker

log = get_logger(__name__)

#: Keys that are compared in one script: others wait no longer than for these.
BATCH = 500
#: Seconds after which a connection without a message is checked.
IDLE = 1.0
#: Seconds between two questions who the master is.
MASTER = 2.0

_WHAT = "following other programs"


class ForeignChanges:
    """Follows the keys that other programs change, in a thread of its own, once ``begin`` was called. Threads: any."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._prefix = client.config.foreign_prefix
        self._worker = Worker(f"keyval-redis-foreign-{client.name}", self._run, wake=self._cancel)
        self._lock = threading.Lock()  # guards the next field
        self._begun = False
        self._link: Link | None = None
        # Changed by the worker only.
        self._keys: dict[bytes, None] = {}
        self._all = True

    def begin(self) -> None:
        """Start the thread, unless it was started."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
        self._worker.start()

    def absorb(self, prefix: str) -> None:
        """Compare all keys under *prefix* now: for a listing, which has to be complete."""
        if prefix.startswith(self._prefix):
            self._absorb_all(prefix)
        elif self._prefix.startswith(prefix):
            self._absorb_all(self._prefix)

    def close(self) -> None:
        self._worker.close()

    def _cancel(self) -> None:
        link = self._link
        if link is not None:
            link.cancel()

    def _run(self, worker: Worker) -> None:
        backoff = Backoff(0.05, 2.0)
        while not worker.stopping.is_set():
            try:
                self._follow(worker, backoff)
            except DatasyncError as error:
                if not worker.stopping.is_set():
                    say = log.info if backoff.failures else log.warning
                    say("%s: changes of other programs are not followed: %s; retrying", self._client.name, error)
                    worker.stopping.wait(backoff.next())

    def _follow(self, worker: Worker, backoff: Backoff) -> None:
        link = self._link = self._client.connect(protocol=3)
        try:
            if worker.stopping.is_set():
                return
            prefix = self._client.keys.prefix(self._prefix)
            only = ("PREFIX", prefix) if prefix else ()
            link.on_invalidated(self._note)
            try:
                link.call("CLIENT", "TRACKING", "ON", "BCAST", *only, what=_WHAT)
            except Elsewhere as error:
                raise self._client.redirected(error) from error
            self._all = True
            checked = asked = time.monotonic()
            while not worker.stopping.is_set():
                if self._all:
                    self._all, self._keys = False, {}
                    self._absorb_all(self._prefix)
                    backoff.reset()
                elif self._keys:
                    keys, self._keys = self._keys, {}
                    self._absorb(keys)
                else:
                    link.receive(IDLE)
                while not self._all and len(self._keys) < BATCH and link.receive(0):
                    pass
                now = time.monotonic()
                if now - checked >= IDLE:
                    checked = now
                    link.call("PING", what=_WHAT)
                if self._client.topology.changes and now - asked >= MASTER:
                    asked = now
                    self._client.check_master(link, _WHAT)
        finally:
            self._link = None
            link.close()

    def _note(self, message: list[object]) -> None:
        """Take a notice: the changed keys, or None when the database was flushed."""
        keys = message[1] if len(message) > 1 else None
        if not isinstance(keys, list):
            self._all = True
            return
        self._keys.update((key, None) for key in keys if isinstance(key, bytes) and not self._client.keys.is_own(key))

    def _absorb_all(self, prefix: str) -> None:
        self._absorb(self._stored(prefix))
        self._absorb(self._known(prefix))

    def _absorb(self, keys: Iterable[bytes]) -> None:
        rest = iter(keys)
        while some := list(islice(rest, BATCH)):
            self._client.run(scripts.ABSORB, new_token(0), *some, what=_WHAT, keys=some)

    def _stored(self, prefix: str) -> Iterator[bytes]:
        """Return the keys that the database holds."""
        pattern = b"".join(
            b"\\" + bytes([one]) if one in b"*?[]\\^" else bytes([one]) for one in self._client.keys.prefix(prefix)
        )
        cursor: bytes = b"0"
        while True:
            cursor, keys = self._client.command("SCAN", cursor, "MATCH", pattern + b"*", "COUNT", BATCH, what=_WHAT)
            yield from (key for key in keys if not self._client.keys.is_own(key))
            if cursor == b"0":
                return

    def _known(self, prefix: str) -> Iterator[bytes]:
        """Return the keys that the log says are there."""
        low, high = self._client.keys.span(prefix)
        index = self._client.keys.index
        while keys := self._client.command("ZRANGEBYLEX", index, low, high, "LIMIT", 0, BATCH, what=_WHAT):
            yield from keys
            low = b"(" + keys[-1]
