"""The difference between what is wanted and what was applied, beside a model of the world."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from datasync.consumer.guard import DeleteGuard
from datasync.consumer.reconciler.answers import Answer
from datasync.consumer.reconciler.applied import Applied, digests_of
from datasync.consumer.reconciler.retry import Retry
from datasync.consumer.reconciler.work import Call, Work
from datasync.errors import Permanent, Rejected
from tests.consumer.test_work_queue import Time

KEYS = st.sampled_from("abcd")
VALUES = st.sampled_from([None, b"1", b"2"])


class Event:
    """An event that notes its answers."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys
        self.answers: list[BaseException | None] = []

    def done(self, error: BaseException | None = None) -> bool:
        self.answers.append(error)
        return True


class WorkMachine(RuleBasedStateMachine):
    """Events, calls that succeed or fail half way, retries and restarts; in the end the world is as wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.wanted: dict[str, bytes] = {}
        self.world: dict[str, bytes] = {"a": b"1", "d": b"9"}
        self.hands: list[Call] = []
        self.events: list[Event] = []
        self.work = self.make({"a": b"1", "d": b"9"})
        self.listed = False
        self.failed: set[str] = set()

    def make(self, known: dict[str, bytes]) -> Work:
        self.applied = Applied(None, digests_of(known))
        return Work(self.applied, DeleteGuard(None), Retry(1, 4), None, self.time)

    @rule()
    def resync(self) -> None:
        """A full state of what is wanted, with the keys that are gone as a source lists them."""
        for key, data in self.wanted.items():
            self.work.offer(key, data, live=False)
        self.work.offer_deletes([key for key in "abcd" if key not in self.wanted], complete=True)
        self.listed = True

    @rule(changes=st.dictionaries(KEYS, VALUES, min_size=1), redelivery=st.booleans(), waits=st.booleans())
    def change(self, changes: dict[str, Any], redelivery: bool, waits: bool) -> None:
        if redelivery:
            changes = {key: self.wanted.get(key) for key in changes}
        event = Event(set(changes))
        answer = Answer(event, len(changes), self.time.now + 2, self.work.outbox) if waits else None  # type: ignore[arg-type]
        if waits:
            self.events.append(event)
        for key, data in changes.items():
            self.wanted.pop(key, None) if data is None else self.wanted.update({key: data})
            self.work.offer(key, data, live=True, answer=answer, redelivery=redelivery)
        self.send()

    @rule(keys=st.sets(KEYS), after=st.sampled_from([0.0, 3.0]))
    def request(self, keys: set[str], after: float) -> None:
        self.work.request(keys, after=after)

    @rule(seconds=st.integers(1, 5))
    def advance(self, seconds: int) -> None:
        self.time.now += seconds

    @rule()
    def take(self) -> None:
        call = self.work.next_call()
        if call is not None:
            assert call.key not in {other.key for other in self.hands}
            assert call.data == self.wanted.get(call.key)
            self.hands.append(call)
        self.send()

    @precondition(lambda self: self.hands)
    @rule(data=st.data(), result=st.sampled_from(["ok", "ok", "fails", "half", "permanent", "again"]))
    def finish(self, data: st.DataObject, result: str) -> None:
        call = self.hands.pop(data.draw(st.integers(0, len(self.hands) - 1)))
        self.give_back(call, result)

    def give_back(self, call: Call, result: str) -> None:
        if result != "fails":
            self.world.pop(call.key, None) if call.data is None else self.world.update({call.key: call.data})
        error = {"fails": ValueError(), "half": ValueError(), "permanent": Permanent()}.get(result)
        self.work.finish(call, error, 2.0 if result == "again" else None)
        self.send()

    def send(self) -> None:
        while self.work.outbox:
            event, error = self.work.outbox.popleft()
            event.done(error)

    @invariant()
    def each_event_is_answered_once_and_names_its_own_keys(self) -> None:
        for event in self.events:
            assert len(event.answers) <= 1
            for error in event.answers:
                assert error is None or (isinstance(error, Rejected) and set(error.errors) <= event.keys)

    def teardown(self) -> None:
        # given an end: what is permanent gets a new value, a full state comes, and all calls succeed
        for key in [key for key, failure in self.work.failures.items() if isinstance(failure.error, Permanent)]:
            self.change({key: b"new"}, redelivery=False, waits=False)
        self.resync()
        for call in self.hands:
            self.give_back(call, "ok")
        for _ in range(30):
            self.time.now += 5
            while (call := self.work.next_call()) is not None:
                self.give_back(call, "ok")
        self.send()
        # then the world is as wanted, each event is answered, and nothing is left
        assert self.world == self.wanted
        assert all(len(event.answers) == 1 for event in self.events)
        assert self.work.quiet
        assert not self.work.failures
        # and the same state again calls nobody
        self.resync()
        assert self.work.next_call() is None


TestWorkMachine = WorkMachine.TestCase
