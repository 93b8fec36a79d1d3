"""Consumers of every kind: fast, slow, stuck, dying, refusing, silent, hasty, chatty; each keeps the view it was told.

A consumer is what an application would write: a RESYNC replaces its view, a CHANGE alters it, but for the keys that it
rejects. Of a CHANGE that it refuses as a whole it may have applied any part.
"""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any

from datasync.errors import Rejected, RetryAfter
from tests.faults.checkers.reading import longest, shown
from tests.faults.history import PutChange, PutResync
from tests.faults.recorder import Recorder, RecordingQueue


@dataclass(frozen=True)
class Manners:
    """How a consumer behaves until it is healed: probabilities per event, and the longest pause."""

    slow: float = 0.0
    stuck: float = 0.0
    refuses: float = 0.0
    #: How often it rejects some keys of an event, and the share of the keys that it always rejects.
    rejects: float = 0.0
    stubborn: float = 0.0
    #: Accepts each change that a caller may wait for: it rejects only what it is told again, and RESYNCs.
    obliging: bool = False
    silent: float = 0.0
    twice: float = 0.0
    elsewhere: float = 0.0
    talks_back: float = 0.0
    pause: float = 0.004
    #: Handles each event inside ``put_nowait``, in the thread of whoever puts.
    at_once: bool = False
    #: How often its queue raises instead of taking an event.
    raises: float = 0.0
    #: How often its queue is full, because others put on it as well.
    crowded: float = 0.0
    #: How often its thread ends before it answers; another one takes its place a little later.
    dies: float = 0.0
    #: How often it hangs until it is healed.
    freezes: float = 0.0

    @property
    def fails(self) -> bool:
        """True when some events are rejected, in whole or in part, or not answered."""
        return bool(self.refuses or self.rejects or self.stubborn or self.dies or self.silent)

    @property
    def mute(self) -> bool:
        """True when some events are not answered before they are given up."""
        return bool(self.stuck or self.silent or self.dies or self.freezes)


MANNERS: Mapping[str, Manners] = {
    "fast": Manners(),
    "slow": Manners(slow=0.8),
    "stuck": Manners(stuck=0.15),
    "refusing": Manners(refuses=0.3),
    "picky": Manners(rejects=0.4),
    "stubborn": Manners(refuses=0.05, stubborn=0.2),
    "obliging": Manners(refuses=0.2, rejects=0.5, obliging=True),
    "silent": Manners(silent=0.15),
    "twice": Manners(twice=0.5, elsewhere=0.2),
    "elsewhere": Manners(elsewhere=0.9),
    "reentrant": Manners(talks_back=0.5),
    "at-once": Manners(twice=0.2, elsewhere=0.2, talks_back=0.5, at_once=True),
    "raising": Manners(raises=0.2, slow=0.2),
    "crowded": Manners(crowded=0.6, slow=0.3, elsewhere=0.3, talks_back=0.2),
    "dying": Manners(dies=0.1),
    "frozen": Manners(freezes=0.2),
    "everything": Manners(0.3, 0.05, 0.1, 0.1, 0.05, 0.05, 0.1, 0.3, 0.1),
}
#: Those that accept everything in the end.
ANSWERING = ("fast", "slow", "twice", "elsewhere", "reentrant", "at-once", "crowded")
#: Those that accept every change that a caller sends.
OBLIGING = (*ANSWERING, "obliging")


class Refusal(Exception):
    """What a consumer answers that does not want an event."""


class _Died(Exception):
    """The end of a consumer's thread."""


class Consumer:
    """One thread that reads two queues (or one) and answers; a second one answers what is to come from elsewhere."""

    def __init__(
        self,
        name: str,
        manners: Manners,
        chance: random.Random,
        *,
        abandon: float,
        room: int,
        shared: bool,
        sources: Sequence[str] = ("",),
    ) -> None:
        self.recorder = Recorder(name, abandon, sources)
        self._chance = chance
        self._manners = manners
        self._healed = threading.Event()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._abandon = abandon
        self.change_queue = self._queue(room)
        self.resync_queue = self.change_queue if shared else self._queue(room)
        #: Called now and then by the consumer's own thread, before it answers.
        self.talk_back: Callable[[random.Random], None] = lambda chance: None
        self.errors: list[BaseException] = []
        self._view: dict[str, bytes] = {}
        self._from: dict[str, str] = {}  # the source that reported a key
        self._lock = threading.Lock()  # guards the view, the sources and the list of threads
        self._later: Queue[Any] = Queue()
        self._errands: Queue[Callable[[], object]] = Queue()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._live(self._consume)
        self._live(self._answer_later)

    @property
    def view(self) -> dict[str, bytes]:
        """What it was told, as a copy."""
        with self._lock:
            return dict(self._view)

    def ask(self, errand: Callable[[], object]) -> None:
        """Let the consumer's own thread call *errand*, between two events."""
        self._errands.put(errand)
        self._wake.set()

    def heal(self) -> None:
        """Behave from now on."""
        self._healed.set()

    def stop(self) -> None:
        self.heal()
        self._stopping.set()
        self._wake.set()
        self._later.put(None)
        while True:  # one that dies leaves another one behind
            with self._lock:
                if not self._threads:
                    return
                thread = self._threads.pop()
            thread.join(10)
            if thread.is_alive():
                self.errors.append(AssertionError(f"{thread.name} hangs"))

    def _live(self, body: Callable[[], None]) -> None:
        name = f"{body.__name__}-{self.recorder.log.name}"
        thread = threading.Thread(target=self._guarded, args=(body,), name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
            thread.start()

    def _queue(self, room: int) -> Queue[Any]:
        if self._manners.at_once:
            return _HandlingQueue(self.recorder, self._handle)
        return _WakingQueue(self.recorder, room, self._wake, self._may_raise)

    def _may_raise(self) -> None:
        """Called for each put, and takes its time, so that others get something done while it is under way."""
        dice = random.random  # by any thread that puts: not the consumer's own chance
        if dice() < 0.1:
            time.sleep(dice() * 0.002)
        if self._healed.is_set():
            return
        if dice() < self._manners.crowded:
            raise Full
        if dice() < self._manners.raises:
            raise Refusal("the queue of this consumer is out of order")

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except _Died:
            self._live(self._come_again)
        except BaseException as error:  # the runner raises it
            self.errors.append(error)

    def _come_again(self) -> None:
        self._healed.wait(self._chance.uniform(0, 2 * self._abandon))
        self._consume()

    def _consume(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            given = self._next()
            if given is not None:
                self._handle(*given)
            elif self._errands.empty():
                self._wake.wait(1.0)
            else:
                self._errands.get()()

    def _next(self) -> tuple[PutChange | PutResync, Any] | None:
        queues = [self.change_queue, self.resync_queue]
        self._chance.shuffle(queues)  # two queues have no common order
        for queue in queues:
            try:
                entry, event = queue.get_nowait()
                return entry, event
            except Empty:
                continue
        return None

    def _handle(self, entry: PutChange | PutResync, event: Any) -> None:
        manners = Manners() if self._healed.is_set() else self._manners
        dice = self._chance.random
        if dice() < manners.slow:
            self._healed.wait(self._chance.uniform(0, manners.pause))
        if dice() < manners.stuck:
            self._healed.wait(self._chance.uniform(0.05, 1.5 * self._abandon))
        if dice() < manners.freezes:
            self._healed.wait()
        if dice() < manners.dies:
            raise _Died
        if dice() < manners.talks_back:
            self.talk_back(self._chance)
        error = self._error(manners, entry)
        if error is None or isinstance(error, Rejected):
            self._apply(entry, () if error is None else error.errors)
        elif isinstance(entry, PutChange):
            self._apply(entry, {change.key for change in entry.changes if dice() < 0.5})
        if dice() < manners.silent:
            return
        answers = 2 if dice() < manners.twice else 1
        for _ in range(answers):
            if dice() < manners.elsewhere:
                self._later.put((entry.number, event, error, self._chance.uniform(0, manners.pause)))
            else:
                self.recorder.done(entry.number, event, error)

    def _error(self, manners: Manners, entry: PutChange | PutResync) -> Exception | None:
        """The answer to *entry*: that it is refused, that some keys are rejected, or None."""
        dice = self._chance.random
        if manners.obliging and isinstance(entry, PutChange) and not entry.redelivery:
            return None
        if dice() < manners.refuses:
            return Refusal("no")
        some = dice() < manners.rejects
        if not some and not manners.stubborn:
            return None
        if isinstance(entry, PutChange):
            keys = [change.key for change in entry.changes]
        else:
            keys = [*shown(entry), *(gone.key for gone in entry.removed)]
        bad = [key for key in keys if (some and dice() < 0.5) or _share(key) < manners.stubborn]
        return Rejected({key: self._reason() for key in bad}) if bad else None

    def _reason(self) -> Exception:
        """The reason of one key: now and then it says when to deliver it again."""
        dice = self._chance.random
        return RetryAfter(dice() * 0.2) if dice() < 0.2 else Refusal("not this one")

    def _apply(self, put: PutChange | PutResync, rejected: Container[str]) -> None:
        with self._lock:
            if isinstance(put, PutResync):  # it says nothing of the keys of other sources
                kept = {k: v for k, v in self._view.items() if k in rejected or self._from[k] != put.source}
                self._view = {key: value for key, value in shown(put).items() if key not in rejected} | kept
                self._from.update(dict.fromkeys(shown(put), put.source))
                return
            for change in put.changes:
                if change.key in rejected:
                    continue
                if change.value is None:
                    self._view.pop(change.key, None)
                else:
                    self._view[change.key] = change.value
                    self._from[change.key] = put.source

    def _answer_later(self) -> None:
        while True:
            item = self._later.get()
            if item is None:
                return
            number, event, error, delay = item
            self._healed.wait(delay)
            self.recorder.done(number, event, error)
            del item, event


def _share(key: str) -> float:
    """A number from 0 to 1 that is the same for *key* in each run."""
    return zlib.crc32(key.encode()) / (1 << 32)


class _WakingQueue(RecordingQueue):
    def __init__(self, recorder: Recorder, maxsize: int, wake: threading.Event, may_raise: Callable[[], None]) -> None:
        super().__init__(recorder, maxsize)
        self._wake = wake
        self._may_raise = may_raise

    def put_nowait(self, item: Any) -> None:
        try:
            self._may_raise()
        except Refusal as error:
            if time.monotonic() - item.put_at < self._recorder.log.abandon / 2:  # else it may be given up already
                self._recorder.not_taken(item, error)
                raise
        super().put_nowait(item)

    def _put(self, item: Any) -> None:
        super()._put(item)
        self._wake.set()


class _HandlingQueue(Queue[Any]):
    """Not a queue at all, but a callback in the shape of one."""

    def __init__(self, recorder: Recorder, handle: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self._recorder = recorder
        self._handle = handle

    def put_nowait(self, item: Any) -> None:
        self._handle(self._recorder.put(item), item)


class Membership:
    """One consumer's registration with a plugin, and the calls that are made on it, noted in the log.

    Calls from different threads are made one after another; the consumer's own thread does not wait for its turn.
    """

    def __init__(self, plugin: Any, consumer: Consumer, prefixes: list[str], in_flight: int) -> None:
        self.consumer = consumer
        self.prefixes = list(prefixes) or [""]  # none is everything (C11)
        self.closed = False
        self._turn = threading.Lock()
        self._closing = threading.Lock()  # guards closed
        name = consumer.recorder.log.name
        consumer.recorder.watched(tuple(self.prefixes), in_flight)
        self._registration = plugin.watch(
            name, consumer.change_queue, consumer.resync_queue, *prefixes, in_flight=in_flight
        )

    def change(self, chance: random.Random, names: list[str]) -> None:
        """Register or unregister something."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self.closed:
                return
            if self.prefixes and chance.random() < 0.45:
                self._unregister(chance.choice(self.prefixes))
            else:
                fresh = [name for name in names if name not in self.prefixes]
                if fresh:
                    self._register(chance.choice(fresh))
        finally:
            self._turn.release()

    def close(self) -> None:
        """May be called twice, and by two threads at once."""
        with self._closing:
            first, self.closed = not self.closed, True
        if not first:
            self._registration.close()
            return
        with self._turn:
            self.consumer.recorder.asked("close", "", False)
            self._registration.close()
            self.consumer.recorder.asked("close", "", True)

    def view_is(self, state: Mapping[str, bytes]) -> bool:
        """True when the consumer's view is what it should be, as far as its prefixes go."""
        prefixes = list(self.prefixes)
        right = {key: value for key, value in state.items() if longest(key, prefixes) is not None}
        view = self.consumer.view
        return right == {key: value for key, value in view.items() if longest(key, prefixes) is not None}

    def _register(self, prefix: str) -> None:
        self.consumer.recorder.asked("register", prefix, False)
        self._registration.register(self.consumer.recorder.log.name, prefix)
        self.prefixes.append(prefix)
        self.consumer.recorder.asked("register", prefix, True)

    def _unregister(self, prefix: str) -> None:
        self.consumer.recorder.asked("unregister", prefix, False)
        self._registration.unregister(prefix)
        self.prefixes.remove(prefix)
        self.consumer.recorder.asked("unregister", prefix, True)
