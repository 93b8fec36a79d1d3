"""The answer to a CHANGE whose keys are being applied.

Source: contract C10, C20.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

from datasync.errors import Rejected
from datasync.events import CallbackResult


class Answer:
    """Acknowledges *event* when each of its *keys* had its call, or at the time *deadline*, whichever comes first.

    Call with the owner's lock held; the acknowledgement itself goes to *outbox*, for the owner to send without it.
    """

    __slots__ = ("_errors", "_event", "_left", "_outbox", "deadline")

    def __init__(
        self,
        event: CallbackResult,
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
