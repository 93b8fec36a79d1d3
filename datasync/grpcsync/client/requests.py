"""What a client was asked to send, and the future of whoever asked."""

from __future__ import annotations

import logging
import time
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from datasync.errors import DatasyncError
from datasync.runtime.threads import ForkGuard, GuardedFuture

log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT", bound=Message)


class Request(Generic[MessageT]):
    """A message, until when it has to be sent, and who waits for the answer.

    Args:
      what: The key, or "resync": for errors.
      deadline: Monotonic time at which it is given up when it was not sent.
    """

    __slots__ = ("deadline", "future", "message", "since", "what")

    def __init__(self, message: MessageT, what: str, deadline: float) -> None:
        self.message = message
        self.what = what
        self.deadline = deadline
        #: Monotonic time since which its answer is the next to come.
        self.since = 0.0
        self.future: GuardedFuture[Any] = GuardedFuture(ForkGuard(f"the answer to {what}"))
        self.future.set_running_or_notify_cancel()  # what may be on its way cannot be called back

    def sent(self) -> None:
        """It is on its way."""
        self.since = time.monotonic()

    def settle(self, result: bool | None, error: DatasyncError | None) -> None:
        """Tell whoever waits; without a lock, for callbacks run in here."""
        try:
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        except BaseException:  # an Exception of a callback is logged by the future; this is sys.exit()
            log.exception("%s: a callback tried to end a thread that is not its own", self.what)
