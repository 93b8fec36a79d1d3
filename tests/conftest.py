"""What every test gets without asking: no thread and no warning outlives it, it ends within 60 seconds, and no value
or secret that it used stands in any log.

The time limit and the rule that a warning is an error are settings (``setup.cfg``); this file makes sure that what a
test leaves behind is found while that test runs, and offers the few helpers that tests share.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NoReturn, TypeVar

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import HealthCheck, settings

T = TypeVar("T")

# As the library does before it imports gRPC. Tests import gRPC themselves, some of them before the library, and gRPC's
# own fork handlers crash one child in some hundred.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

#: Seconds that any wait may take that must succeed. A quiet machine needs a fraction of it; a wait that compares with a
#: limit of the product has a number of its own.
PATIENT = 30.0
#: Seconds within which a thread that was told to end must have ended, or the test fails.
THREAD_GRACE = 3.0
#: Seconds that a part of a test has to end in when its time is over.
HANG_GRACE = 60.0

#: Part of every value, token and password that tests use where they can: a log that holds it fails the test.
CANARY = "Zq9canary"
#: In place of the canary in what a subscriber of a test says when it rejects something: that is logged in its own words
#: (C22). Anywhere else it is a canary like every other one.
OWN_WORDS = f"{CANARY}-own-words"
#: Loggers, with all below them, whose every record is looked at, whatever their levels are.
WATCHED = ("datasync", "grpc", "urllib3", "werkzeug", "asyncio", "concurrent")

_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("quick", max_examples=10, **_COMMON)
settings.register_profile("dev", max_examples=50, **_COMMON)
# In CI a failing example must be repeatable from the log alone: no random seed, and the blob is printed.
settings.register_profile("ci", max_examples=200, derandomize=True, print_blob=True, **_COMMON)


def in_ci() -> bool:
    """True on a machine where an absent server is a failure."""
    return bool(os.environ.get("CI"))


# Ignored as in `pytest &` or `nohup pytest`, and what tests start would inherit that; a handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci() else "dev"))


def wait_until(condition: Callable[[], T], sentence: str, timeout: float = PATIENT) -> T:
    """Return the first true value of *condition*, or fail: "*sentence*: not true within *timeout* s"."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"{sentence}: not true within {timeout:g} s (last value: {value!r})")
        time.sleep(0.005)
    return value


def take(queue: Queue[Any], timeout: float = PATIENT) -> Any:
    """The next item of *queue*, or fail when none comes within *timeout* seconds."""
    try:
        return queue.get(timeout=timeout)
    except Empty:
        pytest.fail(f"nothing came out of the queue within {timeout:g} s")


def absent(what: str) -> NoReturn:
    """End a test whose server or tool is not there: skipped at home, failed when the variable CI is set."""
    message = f"{what} is not there"
    if in_ci():
        pytest.fail(f"{message}, and CI must have it", pytrace=False)
    pytest.skip(message)


#: Marks of tests that run only when they are asked for by ``-m``.
ON_DEMAND = ("bench", "slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("markexpr", "")
    for mark in ON_DEMAND:
        if mark not in wanted:
            off = [item for item in items if item.get_closest_marker(mark)]
            if off:
                config.hook.pytest_deselected(items=off)
                items[:] = [item for item in items if not item.get_closest_marker(mark)]


def pytest_collection_finish() -> None:
    _freeze()  # what was imported to get here


def _freeze() -> None:
    """Let later collections pass over what exists now, which keeps the one after each test at a millisecond."""
    gc.collect()
    gc.freeze()


class _Canary:
    """Looks at every record of the watched loggers, down to DEBUG, and changes nothing for anybody else.

    Threads: any; a list takes what is found.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._enabled = logging.Logger.isEnabledFor
        self._handle = logging.Logger.handle

    def install(self) -> None:
        canary = self

        def is_enabled_for(logger: logging.Logger, level: int) -> bool:
            return logger.name.startswith(WATCHED) or canary._enabled(logger, level)

        def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
            if logger.name.startswith(WATCHED):
                canary.look_at(record)
                if not canary._enabled(logger, record.levelno):
                    return
            canary._handle(logger, record)

        logging.Logger.isEnabledFor = is_enabled_for
        logging.Logger.handle = handle

    def remove(self) -> None:
        logging.Logger.isEnabledFor = self._enabled
        logging.Logger.handle = self._handle

    def look_at(self, record: logging.LogRecord) -> None:
        # What exceptions say and not the lines of source that they came by: those may name the canary.
        told = [record.getMessage(), record.threadName or ""]
        error = record.exc_info[1] if record.exc_info else None
        while error is not None:
            told.append(f"{error!r} {error}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if getattr(record, "state", "") == "failing":
            told = [text.replace(OWN_WORDS, "") for text in told]
        if any(CANARY in text for text in told):
            self.found.append(f"{record.name} {record.levelname}: {' / '.join(told)[:500]}")


_canary = _Canary()


def pytest_configure() -> None:
    _canary.install()


def pytest_unconfigure() -> None:
    _canary.remove()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    return (yield from _ends_or_is_ended(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from _ends_or_is_ended(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    return (yield from _ends_or_is_ended(item))


def _ends_or_is_ended(item: pytest.Item) -> Iterator[None]:
    """End the process, with the stacks of all threads, where the limit of a test did not end it.

    The limit comes by a signal, and that is one exception in the main thread: code in C does not see it, and what it
    unwinds may wait in turn. A hang is then one failure, and not the end of the run: xdist replaces the process.
    """
    mark = item.get_closest_marker("timeout")
    limit = float(mark.args[0] if mark else item.config.getini("timeout"))
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(limit + HANG_GRACE, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True, scope="module")
def _what_outlives_a_module_stays() -> Iterator[None]:
    """Freeze what is still there, such as servers, reports and late imports: a process of tests lives long."""
    yield
    _freeze()


@pytest.fixture(autouse=True)
def _no_value_or_secret_is_logged() -> Iterator[None]:
    """Fail the test in which a watched logger told the canary (C16). Its threads have ended by then."""
    _canary.found.clear()
    yield
    found = list(_canary.found)
    _canary.found.clear()
    assert not found, f"a value or secret stands in the log: {found[0]}"


@pytest.fixture(autouse=True)
def _no_thread_outlives_the_test() -> Iterator[None]:
    """Fail when a thread is alive that was not there before; grpc's own threads end when they like."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_GRACE
    leaked = _strangers(before)
    while leaked and time.monotonic() < deadline:
        leaked[0].join(0.05)
        leaked = _strangers(before)
    assert not leaked, f"threads outlive the test: {', '.join(thread.name for thread in leaked)}"


@pytest.fixture(autouse=True)
def _no_warning_outlives_the_test() -> Iterator[None]:
    """Collect garbage while the test still runs, so that an unclosed file or socket is this test's failure."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _no_forked_child_outlives_the_test() -> Iterator[None]:
    """Kill forks of this process that a failed test left behind: they would hold its output open for ever."""
    yield
    forks = _forks()
    for pid in forks:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not forks, f"forked children outlive the test: {forks}"


def _forks() -> list[int]:
    """Children that are copies of this process; servers, which run another program, are their fixtures' business."""
    own = Path("/proc/self/cmdline")
    if not own.exists():
        return []
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # the thread has ended meanwhile; its children are another thread's now
            continue
        for pid in pids:
            command = Path("/proc", pid, "cmdline")
            # What has ended and is not waited for yet has no command line any more.
            if command.exists() and command.read_bytes() == own.read_bytes():
                found.append(int(pid))
    return found


def _strangers(before: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before and not _exempt(thread)]


def _exempt(thread: threading.Thread) -> bool:
    if isinstance(thread, threading._DummyThread):
        return True  # started by C code, and seen here only because a callback ran in it
    if thread.name.startswith("openfeature-event-handler"):
        return True  # of the OpenFeature SDK, which keeps its pool for ever
    module = getattr(getattr(thread, "_target", None), "__module__", None) or ""
    # grpc: channel and server threads; pytest_timeout: its timer; execnet: the workers of pytest-xdist.
    return module.partition(".")[0] in {"grpc", "pytest_timeout", "execnet"}
