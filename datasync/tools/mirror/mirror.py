"""Keeps a prefix of one store equal to a prefix of another one.

Source: contract C16-C18, C20, C22, C23.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from datasync.consumer.consumer import Consumer
from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError, NotReadyError, UnsupportedError
from datasync.events import ChangeEvent, ResyncEvent
from datasync.keyval.api import Store
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime import monitoring
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, ForkGuard, Worker
from datasync.runtime.timeouts import Timeouts, check_seconds, check_timeout, default_timeouts
from datasync.tools.mirror.differences import Differences
from datasync.tools.mirror.key_map import KeyMap, MapKey
from datasync.tools.mirror.lifetimes import Lifetimes
from datasync.tools.mirror.loops import LoopCheck
from datasync.tools.mirror.record import location
from datasync.tools.mirror.status import MirrorStatus
from datasync.tools.mirror.target import DisplacedError, MirrorTarget
from datasync.tools.mirror.transfer import Transfer
from datasync.tools.mirror.writer import MAX_OPS

log = get_logger(__name__)

#: The most deletes at once, as a share of the keys of the destination.
MAX_DELETE = 0.5
#: Seconds between two looks for mirrors that lead back to the destination, and for a lost lock.
LOOK_EVERY = 5.0
#: Seconds between two looks at least, while a comparison that is due cannot begin.
SOONEST = 0.1
#: Seconds after which an event of the source counts as given up: the mirror answers when the destination is back.
PATIENCE = 1e9
NAME = "mirror"


class PrefixMirror(Closable):
    """Keeps *prefix* of *destination* equal to *source_prefix* of *source*, until it is closed.

    First, and after each break that lost changes, it compares the source with the keys that the destination really has,
    and writes the differences in the order in which the source got them. Then it writes each change, and each
    transaction of the source as one of the destination, together with a record of the source's revision. It outlives
    the loss of both ends.

    Each transaction requires the lock of the mirror and the record of the transaction before. So two mirrors with the
    same destination do not mix: one of them waits; where the destination has no locks, the first one ends. A mirror is
    refused if what it reads was brought from its own destination by running mirrors.

    Args:
      source, destination: The stores; the mirror does not close them.
      source_prefix: The prefix of the keys to copy.
      prefix: The prefix in the destination, in place of *source_prefix*; the same one unless given.
      exclude: Patterns of keys without prefix that are left alone at both ends: ``*``, ``?`` and ``[…]``.
      map_key: Gives the key in the destination for a key of the source, both without prefix; None leaves it out.
      delete: Delete keys that the source does not have. Without it nothing is ever deleted in the destination.
      max_delete: The most deletes of one comparison, or of one change in a source without history: a number, or a share
        of the keys in the destination; None for any number. A share never holds ten or fewer, unless they are all. Held
        deletes wait for ``release_deletes``.
      ttl: A key with a time to live is copied without it (``drop``; its expiry is a delete like any other), with it
        (``copy``), or is not copied (``refuse``). A lease that the source renews is copied as it is at a comparison.
      verify_every: Seconds between comparisons that repair what other programs did to the destination; None for never.
      max_txn_ops: The most keys of one transaction of the destination, but for one of the source that has more. What
        the destination does not take is halved.
      lock_ttl: Seconds after which the destination of a mirror that died is free; ``session_ttl`` of the store by
        default.
      dry_run: Compare once, and write nothing: ``differences`` has the result.
      timeouts: Durations of the reader that differ from the defaults.

    Raises:
      InvalidArgumentError: An invalid argument.
      UnsupportedError: *ttl* needs what the source cannot tell.

    Threads: any; it has its own.
    Source: contract C18, C20.

    .. versionadded:: 1.0
    """

    def __init__(
        self,
        source: Store,
        destination: Store,
        source_prefix: str = "",
        prefix: str | None = None,
        *,
        exclude: Iterable[str] = (),
        map_key: MapKey | None = None,
        delete: bool = False,
        max_delete: int | float | None = MAX_DELETE,
        ttl: str = "drop",
        verify_every: float | None = None,
        max_txn_ops: int = MAX_OPS,
        lock_ttl: float | None = None,
        dry_run: bool = False,
        timeouts: Timeouts | None = None,
    ) -> None:
        for name, store in (("source", source), ("destination", destination)):
            if not isinstance(store, Store):
                raise InvalidArgumentError(f"{name} must be a store from connect(), not {type(store).__name__}")
        prefix = source_prefix if prefix is None else prefix
        if isinstance(max_txn_ops, bool) or not isinstance(max_txn_ops, int) or max_txn_ops < 1:
            raise InvalidArgumentError(f"max_txn_ops must be an integer, at least 1, not {max_txn_ops!r}")
        destination.new_broker(prefix)  # checks it
        self._verify_every = None if verify_every is None else check_seconds("verify_every", verify_every)
        self._source = source
        self._guard = ForkGuard("the mirror")
        #: The name in metrics: the destination.
        self.name = f"{destination.name} {prefix}".rstrip()
        self._closing = Flag()
        keys = KeyMap(source_prefix, prefix, exclude, map_key)
        self._target = MirrorTarget(destination, prefix, location(source), source_prefix, lock_ttl, keys.patterns)
        self._plugin: Plugin = Plugin(
            source,
            source_prefix,
            allow_delayed_start=True,
            timeouts=(timeouts or default_timeouts())._replace(abandon=PATIENCE, remind=PATIENCE),
        )
        self._loops = LoopCheck(source, source_prefix)
        self._transfer = Transfer(
            NAME,
            self._plugin,
            self._target,
            keys,
            delete=delete,
            max_delete=max_delete,
            max_txn_ops=max_txn_ops,
            dry_run=dry_run,
            lifetimes=Lifetimes(source, source_prefix, destination, ttl),
            loops=self._loops,
            closing=self._closing,
        )
        self._failure: BaseException | None = None
        self._consumer: Consumer | None = None
        self._looker = Worker(f"mirror-{prefix}", self._look)

    # Life.

    def start(self) -> None:
        """Start; without effect if it runs. An end that cannot be reached is waited for.

        Raises:
          StoreError: The source can be reached and returns an error.
          ClosedError, ForkedError.
        """
        self._guard.check()
        if self._closing.is_set():
            raise ClosedError("the mirror is closed")
        if self._consumer is None:
            self._consumer = Consumer(self._plugin, NAME, handle=self._handle)
            self._looker.start()
            self.measure(monitoring.monitor())
            monitoring.enrol("mirror", self)
        self._plugin.after_init()

    def close(self, timeout: float = 60.0) -> None:
        """End; the transaction in progress is waited for up to *timeout* seconds. May be called twice."""
        if self._guard.forked:
            return
        self._closing.set()
        monitoring.dismiss(self)
        self._target.cancel()
        self._transfer.compared.set()  # for those who wait
        self._looker.close()
        if self._consumer is not None:
            self._consumer.close(timeout)
        self._plugin.close()
        self._target.forget()

    def __enter__(self) -> PrefixMirror:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    # Control.

    def pause(self) -> None:
        """Write nothing until ``resume``; what comes meanwhile is caught up then."""
        self._transfer.pause()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._transfer.resume()

    def verify(self) -> None:
        """Compare source and destination now, and repair the differences; does not wait."""
        self._guard.check()
        if self._consumer is not None and not self._closing.is_set():
            self._plugin.registry.request_resync(NAME)

    def release_deletes(self) -> None:
        """Compare again, and let the deletes go on that the guard holds now, and no others."""
        self._transfer.release_deletes()
        self.verify()

    def wait_copied(self, timeout: float) -> None:
        """Wait for the end of the first comparison; keys that were refused or held do not count as an error.

        Raises:
          NotReadyError: It has not ended after *timeout* seconds; the message has the last error.
          MirrorLoopError: What the source has comes from the destination.
          ClosedError, ForkedError.
        """
        self._guard.check()
        self._transfer.compared.wait(check_timeout(timeout))
        if self._failure is not None:
            raise self._failure
        if not self._transfer.compared.is_set():
            error = self._transfer.last_error or self._plugin.status().last_error
            why = "" if error is None else f": {error}"
            raise NotReadyError(f"the mirror has not copied everything within {timeout:.1f} s{why}") from error
        if self._closing.is_set():
            raise ClosedError("the mirror is closed")

    @property
    def failure(self) -> BaseException | None:
        """The error that ended the mirror; None while it runs. No loss of an end is one."""
        return self._failure

    @property
    def differences(self) -> Differences | None:
        """The differences that the last comparison found; None before it."""
        return self._transfer.differences

    def status(self) -> MirrorStatus:
        """Return the status of both ends (C18)."""
        self._guard.check()
        return self._transfer.status(self._closing.is_set() or self._failure is not None, self._failure)

    def measure(self, monitor: monitoring.Monitor) -> None:
        """Count for *monitor* from now on."""
        self._transfer.measure(monitor.tally("mirror", self.name, self))

    # In the threads of the mirror.

    def _handle(self, event: ChangeEvent | ResyncEvent) -> None:
        try:
            if isinstance(event, ResyncEvent):
                self._transfer.compare(event)
            else:
                self._transfer.apply(event, self.verify)
        except (InvalidArgumentError, UnsupportedError, ClosedError, DisplacedError) as error:
            # A loop, a destination that takes no writes or that another mirror took, a store that was closed.
            if not self._closing.is_set():
                self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        log.error("the mirror ends: %s", error)
        self._failure = error
        self._closing.set()
        self._target.forget()
        self._transfer.compared.set()
        self._looker.signal()
        if self._consumer is not None:
            self._consumer.close()

    def _look(self, worker: Worker) -> None:
        """Look for loops and for a lost lock, and compare when it is time."""
        due = None if self._verify_every is None else time.monotonic() + self._verify_every
        while not worker.stopping.wait(min(LOOK_EVERY, max((due or math.inf) - time.monotonic(), SOONEST))):
            try:
                if not self._transfer.compared.is_set():
                    continue
                changed = self._loops.check(self._target)
                late = due is not None and time.monotonic() >= due
                if late:
                    due = time.monotonic() + (self._verify_every or 0.0)
                if late or changed or not self._transfer.owns:
                    self.verify()
            except (InvalidArgumentError, ClosedError) as error:
                if not self._closing.is_set():
                    self._fail(error)
            except DatasyncError as error:
                log.debug("the mirror could not be looked after: %s", error)
