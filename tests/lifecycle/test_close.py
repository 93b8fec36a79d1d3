"""``close()`` from anywhere, at any time, with whatever server: it returns in time and leaves no thread; C15, I15, I16.

That no thread is left is seen to by ``conftest.py``, after every test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from datasync import grpcsync, restsync
from datasync.errors import ClosedError, DatasyncError
from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from datasync.runtime.threads import CLOSE_TIMEOUT
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.conftest import take
from tests.faults.checkers.course import check_closings
from tests.faults.history import Closing, Course, Truth
from tests.lifecycle.everything import PATIENCE, text
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer
from tests.support.timing import at_most

#: Seconds on top of what is promised: the machine may be busy with other things.
MARGIN = 1.0
#: Seconds that a call under way at the server may still take before it is cut off.
IN_FLIGHT = 2.0


@dataclass
class Open:
    """Something that is open, ready to be closed."""

    #: To be closed in this order.
    parts: list[Any]
    #: Subscribes a queue.
    watch: Callable[[Queue[Any]], object]
    #: Makes an event come.
    poke: Callable[[], object]
    #: Waits until the source is there; None where there is nothing to wait for.
    wait_ready: Callable[[float], object] | None = None
    #: Begins, where that is a step of its own.
    start: Callable[[], object] = lambda: None
    #: Closed when the test is over.
    others: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        for part in self.parts:
            part.close()


def a_registry(where: Where) -> Open:
    registry = Registry("closing")
    return Open(
        [registry],
        lambda queue: registry.watch("agent", queue, queue, ""),
        lambda: registry.submit_changes({"k": Change("k", text("v"))}),
    )


def a_sourced_registry(where: Where) -> Open:
    registry = Registry("closing", sourced=True)
    return Open([registry], lambda queue: registry.watch("agent", queue, queue, ""), lambda: None, registry.wait_ready)


def _on_store(url: str, **options: Any) -> Open:
    store = connect(url, **options)
    plugin = Plugin(store, "/closing/", allow_delayed_start=True)
    return Open(
        [plugin, store],
        lambda queue: plugin.watch("agent", queue, queue, ""),
        lambda: None,  # the first RESYNC comes by itself
        plugin.wait_ready,
        plugin.after_init,
    )


def memory(where: Where) -> Open:
    return _on_store("memory://")


def sqlite(where: Where) -> Open:
    return _on_store(f"sqlite://{where.folder}/closing.db")


def etcd(where: Where) -> Open:
    if where.etcd is None:
        pytest.skip("etcd is not there")
    return _on_store(f"etcd://{where.through('127.0.0.1', where.etcd.port)}", dial_timeout=1.0)


def a_rest_client(where: Where) -> Open:
    adapter = restsync.Adapter()
    server = restsync.serve("127.0.0.1:0", adapter)
    client = restsync.Client(f"http://{where.through('127.0.0.1', server.port)}", timeout=IN_FLIGHT)
    opened = Open([client], lambda queue: client.watch("agent", queue, queue, ""), lambda: None, client.wait_ready)
    opened.others.callback(adapter.close)
    opened.others.callback(server.close)
    return opened


def a_rest_server(where: Where) -> Open:
    adapter = restsync.Adapter()
    server = restsync.serve("127.0.0.1:0", adapter)
    client = restsync.Client(server.url)
    stream = Queue[Any]()

    def watch(queue: Queue[Any]) -> None:
        adapter.watch("agent", queue, queue, "")
        client.watch("agent", stream, stream, "")  # a stream that is open while it closes

    def poke() -> None:
        threading.Thread(target=_put, args=(client,), daemon=True).start()

    opened = Open([server, adapter], watch, poke)
    opened.others.callback(client.close)
    return opened


def a_grpc_client(where: Where) -> Open:
    server = grpcsync.serve("127.0.0.1:0")
    queue = Queue[Any]()
    server.adapter.watch("agent", queue, queue, "")
    client = grpcsync.Client(where.through("127.0.0.1", server.port))
    opened = Open([client], lambda queue: None, lambda: None, client.wait_ready)
    opened.others.callback(server.close)
    return opened


def a_grpc_server(where: Where) -> Open:
    server = grpcsync.serve("127.0.0.1:0")
    client = grpcsync.Client(server.address)
    opened = Open(
        [server],
        lambda queue: server.adapter.watch("agent", queue, queue, ""),
        lambda: client.put_async("k", text("v")),
    )
    opened.others.callback(client.close)
    return opened


def _put(client: restsync.Client) -> None:
    try:
        client.put("k", text("v"))
    except DatasyncError:
        pass  # closed before it was answered


@dataclass
class Where:
    """What openers need; *proxies* are those in front of servers."""

    folder: Path
    etcd: EtcdServer | None
    stack: ExitStack
    proxies: list[TcpProxy] = field(default_factory=list)

    def through(self, host: str, port: int) -> str:
        proxy = self.stack.enter_context(TcpProxy((host, port)))
        self.proxies.append(proxy)
        return proxy.address


Opener = Callable[[Where], Open]

WITH_EVENTS: list[Opener] = [a_registry, memory, sqlite, etcd, a_rest_client, a_rest_server, a_grpc_server]
ALL: list[Opener] = [*WITH_EVENTS, a_sourced_registry, a_grpc_client]
REMOTE: list[Opener] = [etcd, a_rest_client, a_grpc_client]


@pytest.fixture
def where(tmp_path: Path, etcd: EtcdServer | None, caplog: pytest.LogCaptureFixture) -> Iterator[Where]:
    with ExitStack() as stack:
        yield Where(tmp_path, etcd, stack)
    # A thread that close() could not end may end later, when the test takes the server away.
    left = [record.getMessage() for record in caplog.get_records("call") if "left behind" in record.msg]
    assert left == []


@contextmanager
def opened(opener: Opener, where: Where) -> Iterator[Open]:
    it = opener(where)
    try:
        yield it
    finally:
        for proxy in where.proxies:
            proxy.heal()
        it.close()
        it.others.close()


class Closer:
    """Calls ``close`` in threads, and measures."""

    def __init__(self, what: str, in_flight: float = 0.0) -> None:
        self._what = what
        self._in_flight = in_flight
        self.course = Course()
        self.errors: list[BaseException] = []

    def close(self, it: Open) -> None:
        begun = time.monotonic()
        try:
            it.close()
        except BaseException as error:
            self.errors.append(error)
        seconds = time.monotonic() - begun
        self.course.closings.append(Closing(self._what, seconds, at_most(CLOSE_TIMEOUT + MARGIN) + self._in_flight))

    def in_threads(self, it: Open, count: int) -> None:
        barrier = threading.Barrier(count)

        def at_once() -> None:
            barrier.wait(PATIENCE)
            self.close(it)

        threads = [threading.Thread(target=at_once) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{self._what}: close() hangs"

    def judge(self) -> None:
        assert self.errors == []
        assert self.course.closings
        assert check_closings(Truth(), (), self.course) is None


def named(openers: list[Opener]) -> Any:
    return pytest.mark.parametrize("opener", openers, ids=lambda opener: opener.__name__)


@named(ALL)
@pytest.mark.parametrize("threads", [1, 8])
def test_c15_i15_close_from_other_threads_and_again(opener: Opener, threads: int, where: Where) -> None:
    closer = Closer(f"{opener.__name__} from {threads} thread(s)")
    with opened(opener, where) as it:
        # given something that works, and an event that nobody has answered
        queue: Queue[Any] = Queue()
        it.watch(queue)
        it.start()
        it.poke()
        if opener in WITH_EVENTS:
            take(queue, PATIENCE)
        # when it is closed, by so many threads at once, and once more after that / then each returns in time
        closer.in_threads(it, threads)
        closer.close(it)
    closer.judge()


@named(WITH_EVENTS)
def test_c15_i15_close_from_a_consumer(opener: Opener, where: Where) -> None:
    closer = Closer(f"{opener.__name__} from a consumer")
    with opened(opener, where) as it:
        # given a consumer whose answer to the first event is the end
        queue: Queue[Any] = Queue()

        def consume() -> None:
            event = take(queue, PATIENCE)
            closer.close(it)
            event.done()

        consumer = threading.Thread(target=consume)
        consumer.start()
        # when it comes
        it.watch(queue)
        it.start()
        it.poke()
        # then the consumer comes back from it
        consumer.join(PATIENCE)
        assert not consumer.is_alive()
    closer.judge()


@named(WITH_EVENTS)
def test_c15_i15_close_from_the_queue_of_a_consumer(opener: Opener, where: Where) -> None:
    # given a queue that handles its events in the thread that puts them: the reader's own, or a caller's
    closer = Closer(f"{opener.__name__} from within a put")
    closed = threading.Event()
    with opened(opener, where) as it:

        class Handling(Queue[Any]):
            def put_nowait(self, item: Any) -> None:
                closer.close(it)
                closed.set()
                item.done()

        # when an event comes, and everything is closed from inside / then it returns
        it.watch(Handling())
        it.start()
        it.poke()
        assert closed.wait(PATIENCE)
    closer.judge()


@named(ALL)
def test_c15_i15_close_while_it_starts(opener: Opener, where: Where) -> None:
    # given many of them / when each is started by one thread and closed by another at the same moment
    closer = Closer(f"{opener.__name__} while it starts")
    for number in range(10):
        with opened(opener, where) as it:
            barrier = threading.Barrier(2)

            def start(it: Open = it, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(PATIENCE)
                try:
                    it.start()
                    it.watch(Queue())
                except ClosedError:
                    pass

            starter = threading.Thread(target=start)
            starter.start()
            barrier.wait(PATIENCE)
            threading.Event().wait(number * 0.0005)
            closer.close(it)
            # then both come back
            starter.join(PATIENCE)
            assert not starter.is_alive()
    closer.judge()


@named([a_sourced_registry, memory, sqlite, *REMOTE])
def test_c15_i15_close_ends_wait_ready(opener: Opener, where: Where) -> None:
    # given somebody who waits for a source that does not come
    closer = Closer(f"{opener.__name__} while somebody waits", IN_FLIGHT)
    with opened(opener, where) as it:
        for proxy in where.proxies:
            proxy.black_hole()
        if opener in REMOTE:
            it.watch(Queue())
            if opener is not etcd:
                it.start()
        told: list[BaseException] = []
        waiting = threading.Event()

        def wait() -> None:
            assert it.wait_ready is not None
            waiting.set()
            try:
                it.wait_ready(PATIENCE)
            except BaseException as error:
                told.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        waiting.wait(PATIENCE)
        # when it is closed
        closer.close(it)
        # then that one hears of it
        waiter.join(PATIENCE / 4)
        assert [type(error) for error in told] in ([ClosedError], [])
        assert not waiter.is_alive()
    closer.judge()


@named(REMOTE)
def test_c15_i15_close_while_the_server_is_in_a_black_hole(opener: Opener, where: Where) -> None:
    # given something that worked until the line swallowed everything
    closer = Closer(f"{opener.__name__} in a black hole", IN_FLIGHT)
    with opened(opener, where) as it:
        it.watch(Queue())
        it.start()
        assert it.wait_ready is not None
        it.wait_ready(PATIENCE)
        for proxy in where.proxies:
            proxy.black_hole()
        # and callers who wait for an answer that will not come
        answers: Queue[BaseException | None] = Queue()
        callers = [threading.Thread(target=_call, args=(it, answers)) for _ in range(3)]
        for caller in callers:
            caller.start()
        threading.Event().wait(0.2)
        # when it is closed / then it returns in time
        closer.close(it)
        # and so do they, with an error of ours, as soon as their own time is over
        for caller in callers:
            caller.join(PATIENCE)
            assert not caller.is_alive()
            assert isinstance(answers.get(timeout=PATIENCE), DatasyncError)
    closer.judge()


def _call(it: Open, answers: Queue[BaseException | None]) -> None:
    try:
        it.parts[0].put("k", text("v"))
    except BaseException as error:
        answers.put(error)
    else:
        answers.put(None)
