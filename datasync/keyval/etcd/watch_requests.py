"""The requests of one Watch call, and the idle timeout that they enforce."""

from __future__ import annotations

import math
import time
from typing import Any

from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.keys import prefix_range
from datasync.runtime.threads import SteppedCondition

#: The id that we request for our watch. Every etcd server grants it and assigns other ids to probes; a grpc-proxy
#: numbers the watches itself, which reveals it.
WATCH_ID = 1
#: Probes within one idle limit.
PROBES = 3


class WatchRequests:
    """The requests of a Watch call. grpc reads them in a thread of its own, which so enforces the idle timeout.

    Once the watch is created it sends probes, also while data arrives: a request for a progress report, and a second
    watch, which is cancelled at once. Every etcd release responds to the second watch, even a member that holds
    progress reports back, and rejects it if our permission was revoked. While the reader waits and nothing arrives
    within the idle limit, the call is cancelled.

    Threads: the reader calls ``pause_timeout`` and ``restart_timeout``, grpc's thread iterates, any calls ``end``.
    """

    def __init__(self, prefix: str, start: int, idle_limit: float, fragment: bool) -> None:
        key, range_end = prefix_range(prefix)
        watch = pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start,
            progress_notify=True,
            watch_id=WATCH_ID,
            fragment=fragment,
        )
        self._idle_limit = idle_limit
        self._probe = [pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key, range_end=range_end))]
        self._condition = SteppedCondition()  # guards the five fields below
        self._probed_at = 0.0
        self._probe_due = math.inf  # while a probe is unanswered, and before the watch is created
        self._outbox = [pb.WatchRequest(create_request=watch)]
        self._ended = False
        self._call: Any = None
        # Written by one thread and read by another without the lock: either value is good enough.
        self._waiting_since: float | None = time.monotonic()
        #: True if the call was cancelled by the idle timeout.
        self.idle = False

    def attach(self, call: Any) -> None:
        """Set *call* as the one to cancel. When it ends by itself, the requests end too."""
        with self._condition:
            self._call = call
        if not call.add_callback(self.end):
            self.end()

    def pause_timeout(self) -> None:
        self._waiting_since = None

    def restart_timeout(self) -> None:
        self._waiting_since = time.monotonic()

    def begin_probes(self, *, progress: bool) -> None:
        """Send probes from now on, with requests for progress reports if the server knows them."""
        with self._condition:
            if progress:
                self._probe.insert(0, pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            self._probe_due = time.monotonic() + self._idle_limit / PROBES
            self._condition.notify_all()

    def probe_answered(self, watch_id: int) -> bool:
        """Cancel the watch *watch_id* of a probe. Return False if no probe was sent that this could answer."""
        request = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))
        with self._condition:
            if self._probe_due != math.inf:
                return False
            self._probe_due = self._probed_at + self._idle_limit / PROBES
            self._outbox.append(request)
            self._condition.notify_all()
        return True

    def end(self) -> None:
        with self._condition:
            self._ended = True
            # Breaks a reference cycle. Left to the garbage collector at the end of the interpreter, the call could
            # meet its own lock held by a grpc thread that no longer exists.
            self._call = None
            self._condition.notify_all()

    def __iter__(self) -> WatchRequests:
        return self

    def __next__(self) -> pb.WatchRequest:
        with self._condition:
            while not self._ended:
                if self._outbox:
                    return self._outbox.pop(0)
                now = time.monotonic()
                since = self._waiting_since or now
                if now - since >= self._idle_limit:
                    break
                if now >= self._probe_due:
                    self._probed_at, self._probe_due = now, math.inf
                    self._outbox.extend(self._probe)
                else:
                    self._condition.wait(min(self._probe_due, since + self._idle_limit) - now)
            call = None if self._ended else self._call
            self.idle = call is not None
        if call is not None:
            call.cancel()
        raise StopIteration
