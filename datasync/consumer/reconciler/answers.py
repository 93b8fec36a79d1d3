"""The answer to a CHANGE whose keys are being applied.

Source: contract C10, C20.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from datasync.errors import DatasyncError, Rejected
from datasync.events import CallbackResult, ChangeEvent
from datasync.runtime.logs import get_logger

log = get_logger(__name__)


class Answer:
    """Acknowledges *event* when each of its *keys* had its call, or at the time *deadline*, whichever comes first.

    Call with the owner's lock held; the acknowledgement itself goes to *outbox*, for the owner to send without it.
    """

    __slots__ = ("_errors", "_event", "_left", "_outbox", "deadline")

    def __init__(
        self,
        event: ChangeEvent,
        keys: int,
        deadline: float,
        outbox: Outbox,
        errors: Mapping[str, BaseException] = MappingProxyType({}),
    ) -> None:
        self._event = event
        self._left = keys
        self._errors = dict(errors)  # of keys that get no call
        self._outbox = outbox
        #: Monotonic time at which the event is answered with what is known by then.
        self.deadline = deadline

    @property
    def context(self) -> contextvars.Context:
        """A copy of the context of the event."""
        return self._event.get_context()

    @property
    def open(self) -> bool:
        """True until the event was answered."""
        return self._left > 0

    def note(self, key: str, error: BaseException | None) -> None:
        """Note the result of *key*: it was applied, or failed with *error*."""
        if self._left:
            if error is not None:
                self._errors[key] = error
            self._left -= 1
            if not self._left:
                self._send()

    def expire(self) -> None:
        """Answer now: what was not called yet is the owner's business alone from here on."""
        if self._left:
            self._left = 0
            self._send()

    def _send(self) -> None:
        self._outbox.append((self._event, Rejected(self._errors) if self._errors else None))


#: Acknowledgements that are due.
Outbox = deque[tuple[CallbackResult, BaseException | None]]


def send(outbox: Outbox, name: str) -> None:
    """Send the acknowledgements that are due. Call without a lock, because the next event is put by the same call."""
    while outbox:
        try:
            event, error = outbox.popleft()
        except IndexError:  # another thread was quicker
            return
        acknowledge(event, error, name)


def acknowledge(event: CallbackResult, error: BaseException | None, name: str) -> None:
    """Acknowledge *event* to the registry of the reconciler *name*, which may be closed by now."""
    try:
        event.done(error)
    except DatasyncError as failure:
        log.warning("%s: an event could not be answered: %s", name, type(failure).__name__)
