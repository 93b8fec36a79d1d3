"""The connections of one store to its master: a few that calls share, and one for each stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError

from datasync.errors import (
    ClosedError,
    DatasyncError,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.keyval.redis.config import NODE, RedisConfig
from datasync.keyval.redis.errors import Elsewhere, meaning
from datasync.keyval.redis.keys import KeySpace
from datasync.keyval.redis.link import Address, Link
from datasync.keyval.redis.scripts import Script
from datasync.keyval.redis.topology import topology_of
from datasync.runtime.backoff import Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, ForkGuard

log = get_logger(__name__)

ResultT = TypeVar("ResultT")

#: Connections that are kept for later calls.
MAX_IDLE = 8
#: The oldest version of a server that has all commands.
OLDEST = (6, 2)
#: Seconds between two attempts while the master is unknown or cannot answer: the first delay, and the longest.
_RETRY = (0.02, 0.5)


class RedisClient:
    """Runs commands and scripts at the master of the store *name*. Threads: any."""

    def __init__(self, config: RedisConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.keys = KeySpace(config.tag)
        self.topology = topology_of(config)
        self._limits = (config.history_commits, int(config.history_age * 1000), config.history_bytes)
        self._guard = ForkGuard(name)
        self._lock = threading.RLock()  # guards the fields below; reentrant, because a finalizer may close a store
        self._idle: list[Link] = []
        self._closed = False
        # The servers that were found to be fit.
        self._admitted: set[Address] = set()
        self._warned = False
        # The server that the next stream asks while the slot is being moved to it.
        self._asked: Address | None = None
        self._stopping = Flag()

    @property
    def forked(self) -> bool:
        return self._guard.forked

    @property
    def closed(self) -> bool:
        return self._closed

    def check_usable(self) -> None:
        self._guard.check()
        if self._closed:
            raise ClosedError(f"{self.name} is closed")

    def command(self, *command: Any, what: str) -> Any:
        """Run *command*, which only reads, and return its response."""
        return self._attempt(lambda link: link.call(*command, what=what))

    def run(self, script: Script, token: str, *arguments: Any, what: str, keys: Sequence[bytes] = ()) -> Any:
        """Run *script*, which may run twice, and return its result. *token* is that of the commits that it makes."""
        given, declared = (token, *self._limits, *arguments), (*self.keys.own, *keys)
        return self._attempt(lambda link: link.run(script, declared, given, what=what))

    def run_write(self, script: Script, token: str, *arguments: Any, what: str, keys: Sequence[bytes]) -> Any:
        """As ``run``, for a commit of the caller.

        Raises:
          UnknownOutcome: It was sent and no response arrived.
        """
        given, declared = (token, *self._limits, *arguments), (*self.keys.own, *keys)
        return self._attempt(lambda link: link.run(script, declared, given, what=what, token=token))

    def run_and_wait(self, script: Script, token: str, *arguments: Any, what: str, keys: Sequence[bytes]) -> Any:
        """As ``run_write``, and wait until enough replicas have the result."""
        given, declared = (token, *self._limits, *arguments), (*self.keys.own, *keys)
        wanted, milliseconds = self.config.wait_replicas, int(self.config.wait_timeout * 1000)

        def attempt(link: Link) -> tuple[Any, int]:
            result = link.run(script, declared, given, what=what, token=token)
            return result, link.call("WAIT", wanted, milliseconds, what=what, token=token)

        result, replicas = self._attempt(attempt)
        if replicas < wanted and result[0] == b"ok":
            text = f"{what}: {replicas} of {wanted} replicas have it, and a failover could lose it"
            raise UnknownOutcome(f"{text}; consider min-replicas-to-write", token)
        return result

    def run_on(self, link: Link, script: Script, token: str, *arguments: Any, what: str) -> Any:
        """Run *script* on a connection of the caller's own. An error ends its use."""
        try:
            return link.run(script, self.keys.own, (token, *self._limits, *arguments), what=what)
        except Elsewhere as error:
            raise self.redirected(error) from error

    def connect(self, *, timeout: float | None = None, protocol: int = 2) -> Link:
        """Return a connection to the master of the caller's own."""
        self.check_usable()
        asked, self._asked = self._asked, None
        try:
            if asked is not None:
                link = Link(self.config, asked, timeout=timeout, protocol=protocol)
                link.asking = True
                return link
            return self._connect(timeout=timeout, protocol=protocol)
        except Elsewhere as error:
            raise self.redirected(error) from error

    def redirected(self, error: Elsewhere) -> DatasyncError:
        """Note where the master is, and return the error for the caller."""
        if error.asking:
            self._asked = error.address
        elif error.address is not None:
            self.topology.hint(error.address)
        return error.error

    def check_master(self, link: Link, what: str) -> None:
        """Raise if another server is the master now: one that was frozen goes on answering for seconds."""
        try:
            found = self.topology.find(avoid=link.address)
        except (DatasyncError, Elsewhere):
            return  # nobody knows, and this one answers
        if found != link.address and not link.asking:
            raise StoreConnectionError(f"{what}: {link.server} is no longer the master")

    def close(self) -> None:
        """Close all connections. Calls that wait fail. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._stopping.set()
        for link in idle:
            link.close()

    # One data path for all calls: take a connection, use it, keep it.

    def _attempt(self, call: Callable[[Link], ResultT]) -> ResultT:
        """Return what *call* returns; again while a server that did nothing says that another one could, or later."""
        deadline = time.monotonic() + self.config.connect_timeout
        backoff = Backoff(*_RETRY, (0.5, 1.0))
        asked: Address | None = None
        while True:
            self.check_usable()
            try:
                link = self._take(asked)
                try:
                    result = call(link)
                except Elsewhere:
                    self._drop(link)
                    raise
                except BaseException:
                    self._drop(link)
                    self._drop_idle()  # most likely they are as dead
                    raise
                self._keep(link, asked)
                return result
            except Elsewhere as error:
                asked = error.address if error.asking else None
                self.redirected(error)
                failed: DatasyncError = error.error
            except UnknownOutcome:
                raise
            except StoreConnectionError as error:
                if self.config.kind == NODE:
                    raise
                failed = error
            delay = 0.0 if asked else backoff.next()
            if time.monotonic() + delay >= deadline:
                raise failed
            self._stopping.wait(delay)

    def _take(self, asked: Address | None) -> Link:
        if asked is not None:
            link = Link(self.config, asked)
            link.asking = True
            return link
        while True:
            with self._lock:
                idle = self._idle.pop() if self._idle else None
            if idle is None:
                return self._connect()
            if not idle.stale:
                return idle
            idle.close()

    def _keep(self, link: Link, asked: Address | None) -> None:
        with self._lock:
            if not self._closed and asked is None and len(self._idle) < MAX_IDLE:
                self._idle.append(link)
                return
        link.close()

    def _drop(self, link: Link) -> None:
        link.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def _connect(self, *, timeout: float | None = None, protocol: int = 2) -> Link:
        address = self.topology.find()
        link = Link(self.config, address, timeout=timeout, protocol=protocol)
        try:
            self._admit(link)
        except BaseException:
            link.close()
            raise
        return link

    def _admit(self, link: Link) -> None:
        """Raise if the server is no master, is too old, or may evict the keys of the store."""
        if not self.topology.changes and link.address in self._admitted:
            return
        try:
            told = _parse_info(link.call("INFO", what="asking for the settings"))
        except StoreError as error:
            if isinstance(error, StoreConnectionError) or isinstance(error.__cause__, AuthenticationError):
                raise
            self._warn(f"it cannot be known whether the server evicts keys: {error}")
            self._admitted.add(link.address)
            return
        if told.get("loading") == "1":
            raise meaning("LOADING", "connecting", link.server)
        if told.get("role", "master") != "master":
            self._admitted.discard(link.address)
            raise meaning("READONLY", "connecting", link.server)
        if link.address in self._admitted:
            return
        version = tuple(int(part) for part in told.get("redis_version", "99").split(".")[:2] if part.isdigit())
        if version < OLDEST:
            raise UnsupportedError(f"{link.server} is Redis {told['redis_version']}; 6.2 or a later version is needed")
        policy = told.get("maxmemory_policy", "")
        if policy.startswith("allkeys-") and not self.config.allow_eviction:
            raise StoreError(
                f"{link.server} evicts any key when its memory is full (maxmemory-policy {policy}), also the log of"
                " this store: set noeviction or volatile-*, or the option allow_eviction"
            )
        self._admitted.add(link.address)

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: %s", self.name, text)


def _parse_info(reply: Any) -> dict[str, str]:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}
