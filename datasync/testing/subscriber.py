"""A subscriber that takes notes, and rejects what a test tells it to.

Source: contract C9, C10.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from datasync.api import KeyValProtoWatcher
from datasync.codecs.api import Codec
from datasync.consumer.consumer import Consumer
from datasync.consumer.pairs import JSON, bytes_and_value
from datasync.errors import DecodeError, DoneTimeout, InvalidArgumentError, Rejected
from datasync.events import ChangeEvent, Op, ResyncEvent
from datasync.runtime.closing import Closable
from datasync.runtime.threads import SteppedCondition
from datasync.runtime.timeouts import check_timeout


class RecordingSubscriber(Closable):
    """Subscribes to *watcher* and records the events, to test what writes, or how rejections arrive.

    Args:
      watcher: A plugin, a registry, or any other transport.
      prefixes: Prefixes of the keys; everything by default.
      name: The resync name.
      codec: Decodes values; JSON by default. A value that cannot be decoded is rejected.

    Threads: any.
    """

    def __init__(
        self, watcher: KeyValProtoWatcher, *prefixes: str, name: str = "recorder", codec: Codec[Any] = JSON
    ) -> None:
        self.name = name
        self.watcher = watcher
        self._codec = codec
        # Guards the lists and dicts below; notified with each event.
        self._changed = SteppedCondition(threading.RLock())
        self._rejects: dict[str, tuple[BaseException, int | None]] = {}
        #: The events, oldest first, redeliveries included.
        self.events: list[ChangeEvent | ResyncEvent] = []
        #: The accepted value of each key.
        self.values: dict[str, Any] = {}
        #: Each key that was rejected, once for each time.
        self.rejected: list[str] = []
        self._consumer = Consumer(watcher, name, *(prefixes or ("",)), handle=self._handle)

    def reject(self, *keys: str, error: BaseException | None = None, times: int | None = None) -> None:
        """Reject *keys* from now on, or so many *times* each, with *error*, ``ValueError`` by default."""
        if not keys:
            raise InvalidArgumentError("reject() needs a key")
        with self._changed:
            for key in keys:
                self._rejects[key] = (error or ValueError("rejected by the test"), times)

    def accept(self, *keys: str) -> None:
        """Accept *keys* again, all when none is given."""
        with self._changed:
            for key in keys or list(self._rejects):
                self._rejects.pop(key, None)

    @property
    def idle(self) -> bool:
        """True when no event waits or is being handled."""
        return self._consumer.idle

    def wait_for(self, condition: Callable[[RecordingSubscriber], object], timeout: float = 10.0) -> None:
        """Wait until ``condition(self)`` is true. Raises ``DoneTimeout``."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), check_timeout(timeout)):
                raise DoneTimeout(f"{self.name!r}: the condition did not become true within {timeout:g} s")

    def close(self) -> None:
        """End the subscription. May be called twice."""
        self._consumer.close()

    def _handle(self, event: ChangeEvent | ResyncEvent) -> None:
        pairs: list[Any]
        if isinstance(event, ResyncEvent):
            pairs = [pair for pairs in event.get_values().values() for pair in pairs]
            gone = [pair.get_key() for pair in event.get_removed()]
        else:
            changes = list(event.get_changes())
            pairs = [change for change in changes if change.get_change_type() is not Op.DELETE]
            gone = [change.get_key() for change in changes if change.get_change_type() is Op.DELETE]
        found = {pair.get_key(): bytes_and_value(self._codec, pair)[1] for pair in pairs}
        with self._changed:
            self.events.append(event)
            errors = self._take_locked(found, gone)
            self.rejected += errors
            self._changed.notify_all()
        if errors:
            raise Rejected(errors)

    def _take_locked(self, found: dict[str, Any], gone: list[str]) -> dict[str, BaseException]:
        """Note what is accepted, and return the errors of the others."""
        errors: dict[str, BaseException] = {}
        for key in [*found, *gone]:
            value = found.get(key)
            error = value if isinstance(value, DecodeError) else self._error_locked(key)
            if error is not None:
                errors[key] = error
            elif key in found:
                self.values[key] = value
            else:
                self.values.pop(key, None)
        return errors

    def _error_locked(self, key: str) -> BaseException | None:
        error, times = self._rejects.get(key, (None, None))
        if error is not None and times is not None:
            if times <= 1:
                del self._rejects[key]
            else:
                self._rejects[key] = (error, times - 1)
        return error
