"""The order of the work on keys."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from datasync.consumer.reconciler.work_queue import LIVE_TURNS, NEVER, WorkQueue


class Time:
    """A clock of one number."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def order(queue: WorkQueue, turns: int) -> list[str | None]:
    """The next keys, each given back at once."""
    taken = []
    for _ in range(turns):
        key = queue.take()
        if key is not None:
            queue.finish(key)
        taken.append(key)
    return taken


def test_c20_live_keys_come_first_and_the_backlog_gets_one_turn_in_four() -> None:
    # given a backlog and as many live keys
    queue = WorkQueue(Time())
    for number in range(8):
        queue.add(f"b{number}")
        queue.add(f"l{number}", live=True)
    # then each fourth turn is the backlog's
    assert order(queue, 9) == ["l0", "l1", "l2", "b0", "l3", "l4", "l5", "b1", "l6"]


def test_c20_a_rare_live_key_never_waits_for_the_backlog() -> None:
    # given a long backlog of which some was done, and live keys now and then
    queue = WorkQueue(Time())
    for number in range(100):
        queue.add(f"b{number}")
    for number in range(10):
        order(queue, 2)
        queue.add(f"l{number}", live=True)
        # then each is the next one
        assert order(queue, 1) == [f"l{number}"]


def test_c20_a_key_has_its_higher_class_and_is_there_once() -> None:
    queue = WorkQueue(Time())
    for key in ("a", "b", "c"):
        queue.add(key)
    queue.add("c", live=True)
    queue.add("c")
    assert order(queue, 4) == ["c", "a", "b", None]


def test_c20_a_key_is_never_in_two_hands() -> None:
    # given a key in hand that is added again
    queue = WorkQueue(Time())
    queue.add("a")
    assert queue.take() == "a"
    queue.add("a")
    queue.add("a", live=True)
    # then it comes again only when it is given back, and once
    assert queue.take() is None
    queue.finish("a")
    assert order(queue, 2) == ["a", None]


def test_c20_retries_of_all_keys_together_are_bounded_and_other_plans_are_not() -> None:
    # given 1,000 retries and one other plan, all due at once
    time = Time()
    queue = WorkQueue(time, rate=10.0, burst=100)
    for number in range(1000):
        queue.plan(f"r{number}", time.now + 1, retry=True)
    queue.plan("asked for", time.now + 1)
    assert queue.next_at() == time.now + 1
    time.now += 1
    # when what is due is taken
    taken = [key for key in order(queue, 1001) if key is not None]
    # then the burst of the retries comes, and the other
    assert len(taken) == 101
    assert "asked for" in taken
    # and ten a second from then on
    for _ in range(5):
        assert abs(queue.next_at() - (time.now + 0.1)) < 1e-6
        time.now += 1
        assert len([key for key in order(queue, 1000) if key is not None]) == 10


def test_c20_a_turn_takes_the_place_of_a_retry_but_not_of_what_was_asked_for_later() -> None:
    time = Time()
    queue = WorkQueue(time)
    queue.plan("retry", time.now + 10, retry=True)
    queue.plan("later", time.now + 10)
    queue.add("retry")
    queue.add("later")
    assert order(queue, 3) == ["retry", "later", None]
    time.now += 10
    assert order(queue, 2) == ["later", None]


def test_c20_the_earlier_of_two_plans_counts_unless_the_later_one_replaces_it() -> None:
    time = Time()
    queue = WorkQueue(time)
    queue.plan("a", time.now + 5)
    queue.plan("a", time.now + 9)
    assert queue.due_in("a") == 5
    queue.plan("a", time.now + 9, later=True)
    assert (queue.due_in("a"), queue.next_at()) == (9, time.now + 9)
    queue.plan("a", time.now + 2, retry=True)
    assert queue.due_in("a") == 2


KEYS = st.sampled_from("abcdef")


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a model that knows only which keys must come, and by when."""

    def __init__(self) -> None:
        super().__init__()
        self.time = Time()
        self.queue = WorkQueue(self.time, rate=1.0, burst=2)
        self.owed: set[str] = set()  # keys that were added and not taken since
        self.live: set[str] = set()
        self.plans: dict[str, float] = {}
        self.retries: set[str] = set()  # of the plans
        self.hands: list[str] = []
        self.since_backlog = 0

    @rule(key=KEYS, live=st.booleans())
    def add(self, key: str, live: bool) -> None:
        self.queue.add(key, live)
        self.owed.add(key)
        if key in self.retries:  # this turn is one
            self.retries.discard(key)
            del self.plans[key]
        if live:
            self.live.add(key)

    @rule(key=KEYS, after=st.integers(0, 5), retry=st.booleans())
    def plan(self, key: str, after: int, retry: bool) -> None:
        self.queue.plan(key, self.time.now + after, retry=retry)
        if key not in self.owed and self.time.now + after < self.plans.get(key, NEVER):
            self.plans[key] = self.time.now + after
            (self.retries.add if retry else self.retries.discard)(key)

    @rule(seconds=st.integers(1, 6))
    def advance(self, seconds: int) -> None:
        self.time.now += seconds

    @rule()
    def take(self) -> None:
        others = self.owed - self.live - set(self.hands)
        key = self.queue.take()
        if key is None:
            # a key that must come is in somebody's hand
            assert self.owed <= set(self.hands)
            return
        assert key not in self.hands
        assert key in self.owed or self.plans.get(key, NEVER) <= self.time.now
        self.since_backlog = self.since_backlog + 1 if key in self.live and others else 0
        assert self.since_backlog <= LIVE_TURNS
        self.owed.discard(key)
        self.live.discard(key)
        if self.plans.get(key, NEVER) <= self.time.now:
            del self.plans[key]
            self.retries.discard(key)
        self.hands.append(key)

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.hands))
        self.hands.remove(key)
        self.queue.finish(key)

    @invariant()
    def every_owed_key_is_there(self) -> None:
        assert all(key in self.queue for key in self.owed)
        assert self.queue.active == len(self.hands)

    def teardown(self) -> None:
        # in the end, with time and free hands, every key that was added comes
        for key in self.hands:
            self.queue.finish(key)
        left = set(self.owed)
        for _ in range(200):
            self.time.now += 10
            left -= {key for key in order(self.queue, 10) if key is not None}
        assert not left
        assert (len(self.queue), self.queue.next_at()) == (0, NEVER)


TestQueueMachine = QueueMachine.TestCase
