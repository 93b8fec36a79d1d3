"""The requests of one Watch call, and the idle timeout that they enforce."""

from __future__ import annotations

import threading
import time
from typing import Any

from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.keys import prefix_range

#: The id of our watch within its call; probes get other ones from the server.
WATCH_ID = 1
#: Signs of life that are asked for within one idle limit of silence.
PROBES = 3


class WatchRequests:
    """What we say in the Watch call, read by grpc in a thread of its own, which so becomes our watchdog.

    While the reader listens and nothing comes, it asks for signs of life: a progress report, and a second watch that is
    dropped at once: that is answered by every release and by members that hold progress back, and refused when our
    permission was revoked meanwhile. With no answer within the idle limit it cancels the call.

    Threads: the reader calls ``heard`` and ``listening``, grpc's thread iterates; any calls ``end``.
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
        self._probe = [
            pb.WatchRequest(progress_request=pb.WatchProgressRequest()),
            pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key, range_end=range_end)),
        ]
        self._asked = 0.0
        self._condition = threading.Condition()  # guards the three fields below
        self._outbox = [pb.WatchRequest(create_request=watch)]
        self._ended = False
        self._call: Any = None
        # Written by one thread and read by the other without the lock: a float or None, either is good enough.
        self._listening_since: float | None = time.monotonic()
        #: True when the call was cancelled for its silence.
        self.idle = False

    def guard(self, call: Any) -> None:
        """*call* is the one to cancel; when it ends by itself, so do we."""
        with self._condition:
            self._call = call
        if not call.add_callback(self.end):
            self.end()

    def heard(self) -> None:
        self._listening_since = None

    def listening(self) -> None:
        self._listening_since = time.monotonic()

    def drop(self, watch_id: int) -> None:
        """End the watch *watch_id*, a probe that was answered."""
        self._say(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    def end(self) -> None:
        with self._condition:
            self._ended = True
            # The call knows us, and we it: left to the collector, it may meet its lock at the end of the interpreter
            # in the hands of a thread of grpc's that is no more.
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
                since = self._listening_since or now
                if now - since >= self._idle_limit:
                    break
                due = max(since, self._asked) + self._idle_limit / PROBES
                if now >= due:
                    self._asked = now
                    self._outbox.extend(self._probe)
                else:
                    self._condition.wait(min(due, since + self._idle_limit) - now)
            call = None if self._ended else self._call
            self.idle = call is not None
        if call is not None:
            call.cancel()
        raise StopIteration

    def _say(self, request: pb.WatchRequest) -> None:
        with self._condition:
            self._outbox.append(request)
            self._condition.notify_all()
