"""The difference between what is wanted and what was applied, key by key, as calls for workers.

Source: contract C10, C20.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from datasync.consumer.guard import DeleteGuard
from datasync.consumer.reconciler.answers import Answer, Outbox
from datasync.consumer.reconciler.applied import Applied
from datasync.consumer.reconciler.own_writes import OwnWrites
from datasync.consumer.reconciler.retry import Retry
from datasync.consumer.reconciler.work_queue import WorkQueue
from datasync.tracing import is_tracing


@dataclass(slots=True)
class Failure:
    """The last call of a key failed with ``error``; ``attempts`` calls failed since its value changed."""

    error: BaseException
    attempts: int


@dataclass(slots=True)
class Call:
    """A call that a worker is to make: the wanted bytes of ``key``, and those accepted before; None for none."""

    key: str
    data: bytes | None
    previous: bytes | None
    answers: list[Answer]
    started: float
    #: True once a log line has said that the call takes long.
    slow: bool = False

    def make(self, apply: Callable[..., Any], value: Any, previous: Any) -> Any:
        """Make the call, within the trace of the last change that waits for it. Without the lock."""
        if is_tracing() and self.answers:
            return self.answers[-1].context.run(apply, self.key, value, previous)
        return apply(self.key, value, previous)


class Work:
    """The wanted and the applied values, and the calls that are due. Call with the owner's lock held.

    Args:
      now: The monotonic clock.
      settle: Seconds without a change that a live change waits for, and the most that it waits.
      own: What the calls wrote themselves.
    """

    def __init__(
        self,
        applied: Applied,
        guard: DeleteGuard,
        retry: Retry,
        settle: tuple[float, float] | None,
        now: Callable[[], float],
        own: OwnWrites,
    ) -> None:
        self.own = own
        self.queue = WorkQueue(now, retry.rate, retry.burst)
        self.guard = guard
        self.failures: dict[str, Failure] = {}
        self.calls: dict[str, Call] = {}
        #: Acknowledgements for the owner to send without the lock.
        self.outbox: Outbox = deque()
        #: Keys of the first pass that had no call yet.
        self.first_pass: set[str] = set()
        self._applied = applied
        self._retry = retry
        self._settle = settle
        self._now = now
        self._wanted: dict[str, bytes] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._forced: set[str] = set()  # to be called even without a difference
        self._looks: set[str] = set()  # the same, at the time that is planned; an earlier call will do
        self._settling: dict[str, float] = {}  # time of the first change that waits
        #: Keys that earlier processes applied, and that no source has reported yet: they may be gone, or not.
        self._unclaimed = set(applied.keys())

    @property
    def quiet(self) -> bool:
        """True when nothing waits but retries and what was asked for later."""
        return not (len(self.queue) or self.queue.active or self._settling or self.own.waiting)

    def offer(
        self, key: str, data: bytes | None, *, live: bool, answer: Answer | None = None, redelivery: bool = False
    ) -> None:
        """Take the wanted value of *key* from an event; None for a delete.

        Args:
          live: True for a change, False for the backlog.
          answer: Waits for the result.
          redelivery: True when the registry brings the key again. That is a question, whose answer is known as long as
            a retry is planned here: one road of retries is enough.
        """
        changed = self._wanted.get(key) != data
        if data is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = data
        self._unclaimed.discard(key)
        self.guard.drop(key)
        failure = self.failures.get(key)
        again = live and not redelivery
        call = self.calls.get(key)
        if call is not None and call.data == data and not again:  # just what is being applied
            if answer is not None:
                call.answers.append(answer)
            return
        if key not in self.queue:
            if failure is not None and not changed and not again and key not in self._forced:
                if answer is not None:
                    answer.note(key, failure.error)
                return
            if failure is None and key not in self._forced and self._applied.matches(key, data):
                self._settling.pop(key, None)
                if answer is not None:
                    answer.note(key, None)
                return
        if failure is not None and (changed or again):
            failure.attempts = 0
        if answer is not None:
            self._answers.setdefault(key, []).append(answer)
        if again and self._settle is not None:
            shortest, longest = self._settle
            now = self._now()
            first = self._settling.setdefault(key, now)
            self.queue.plan(key, min(now + shortest, first + longest), live=True, later=True)
        else:
            self.queue.add(key, live)

    def offer_deletes(self, removed: Iterable[str], *, complete: bool) -> list[str]:
        """Take the deletes of a full state; return those that are held.

        Args:
          removed: Keys that the source offered before.
          complete: True when every source has sent its full state: keys that none has reported by then are gone too.
        """
        gone = [key for key in removed if key in self._wanted or key in self._applied]
        if complete:
            gone += self._unclaimed
            self._unclaimed.clear()
        gone = [key for key in dict.fromkeys(gone) if key not in self.guard.held]
        if not self.guard.admits(len(gone), max(len(self._wanted), len(self._applied))):
            self.guard.hold(gone)
            return gone
        for key in gone:
            self.offer(key, None, live=False)
            if key in self.queue:
                self.first_pass.add(key)
        return []

    def release(self) -> list[str]:
        """Let the held deletes go on; return their keys."""
        keys = self.guard.release()
        for key in keys:
            self.offer(key, None, live=False)
        return keys

    def known(self, keys: Iterable[str] | None) -> list[str]:
        """Return those of *keys*, all when None, of which there is something to call."""
        if keys is None:
            return [*{*self._wanted, *self._applied.keys()}]
        return [key for key in dict.fromkeys(keys) if key in self._wanted or key in self._applied]

    def claim(self, keys: Iterable[str]) -> None:
        """Note that a source has reported *keys*, although their values are not known."""
        self._unclaimed.difference_update(keys)

    def request(self, keys: Iterable[str] | None, *, after: float = 0.0, live: bool = False) -> None:
        """Have *keys*, all when None, called even without a difference; unknown keys are ignored."""
        for key in self.known(keys):
            if after > 0.0:
                self._plan_look(key, after)
                continue
            self._forced.add(key)
            if key not in self._unclaimed:  # whether it is wanted is not known before the first full state
                self.queue.add(key, live)

    def next_call(self) -> Call | None:
        """Return the next call to be made; None when there is none now. Each call is given back by ``finish``."""
        while (key := self.queue.take()) is not None:
            if (until := self.own.held_until(key)) > 0.0:
                self._wait_for_own_write(key, until)
                continue
            self.own.waiting.discard(key)
            self._settling.pop(key, None)
            data = self._wanted.get(key)
            answers = self._answers.pop(key, [])
            forced = key in self._forced or key in self._looks
            self._forced.discard(key)
            self._looks.discard(key)
            if key in self._unclaimed:
                self._forced.add(key)  # called once its source has reported it
                self.queue.finish(key)
                continue
            same = self._applied.matches(key, data)
            if key in self.guard.held or (same and (data is None or not forced) and key not in self.failures):
                if key in self.guard.held and key in self.failures:
                    self._forced.add(key)  # to be called when the key is back
                self.queue.finish(key)
                self.first_pass.discard(key)
                for answer in answers:
                    answer.note(key, None)
                continue
            call = self.calls[key] = Call(key, data, self._applied.get(key), answers, self._now())
            return call
        return None

    def finish(self, call: Call, error: BaseException | None, look_again: float | None = None) -> float:
        """Take the result of *call*; return the seconds to the next attempt after an error, infinity for none.

        Args:
          look_again: Seconds after which the applied key is to be called again.
        """
        key, delay = call.key, math.inf
        del self.calls[key]
        self.first_pass.discard(key)
        if error is None:
            self.failures.pop(key, None)
            self._applied.accept(key, call.data)
            if look_again is not None:
                self._plan_look(key, look_again)
        else:
            failure = self.failures.setdefault(key, Failure(error, 0))
            failure.error = error
            failure.attempts += 1
            delay = self._retry.delay(error, failure.attempts)
        self.queue.finish(key)
        if delay < math.inf:
            self.queue.plan(key, self._now() + delay, retry=True)
        for answer in call.answers:
            answer.note(key, error)
        return delay

    def delivered(self, source: str, revision: int) -> None:
        """Note that *source* has delivered everything up to *revision*, one's own writes too."""
        for key in self.own.deliver(source, revision):
            self.queue.hasten(key)

    def _wait_for_own_write(self, key: str, until: float) -> None:
        """Put *key* aside: a call has written it, so that what is wanted here is an old value."""
        self.own.waiting.add(key)
        self.queue.set_aside(key, until)
        for answer in self._answers.pop(key, []):  # the event that brings the write may wait for this answer
            answer.note(key, None)

    def late_calls(self, deadline: float) -> tuple[list[str], float]:
        """Return the keys whose calls have taken *deadline* seconds, each once, and the time at which to look again."""
        now, late = self._now(), []
        until = now + deadline  # a call that begins meanwhile is not late before
        for call in self.calls.values():
            if not call.slow and call.started + deadline <= now:
                call.slow = True
                late.append(call.key)
            elif not call.slow:
                until = min(until, call.started + deadline)
        return late, until

    def _plan_look(self, key: str, after: float) -> None:
        self._looks.add(key)
        self.queue.plan(key, self._now() + after)
