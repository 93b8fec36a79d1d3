"""The run of one cell: a source, a transport, watchers and misfortunes; then everything heals and is checked."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from tests.faults.cell import NONE, RANDOM, SECONDS, Cell, Result, fits
from tests.faults.checkers.evidence import memory_tells
from tests.faults.checkers.judge import judge
from tests.faults.history import LONG, Asked, Log, PutResync, Strike, TruthCommit, brief
from tests.faults.sources.source import Misfortune, Ops, Source, make_source, random_puts
from tests.faults.workloads import measurements as measure
from tests.faults.workloads.audience import Audience
from tests.faults.workloads.times import Times, shortened
from tests.faults.workloads.workload import WORKLOADS, Pace
from tests.support.timing import slowdown

#: Seconds within which a cell must converge (I8), and after which it is abandoned.
CONVERGENCE, PATIENCE = 2.0, 30.0
#: Seconds after which a cell whose writer counts ends on a slow machine, whatever is left to write.
LONGEST = 40.0
#: Multiple of its duration by which a cell may be extended until its evidence is complete.
EXTENSION = 2.0
#: Minimum and maximum seconds before the first misfortune, and between two.
FIRST, NEXT = (0.05, 0.4), (0.5, 1.2)
#: Minimum and maximum seconds from the beginning of a misfortune until the transport is closed.
MIDST = (0.0, 0.5)


def run_cell(cell: Cell, make: Callable[[random.Random], Source] | None = None) -> Result:
    """Run *cell*. The seed determines everything except the timing of threads."""
    began = time.monotonic()
    result = Result(cell)
    threads = set(threading.enumerate())
    chance = random.Random(cell.seed)
    source = make(chance) if make is not None else make_source(cell.source, chance)
    try:
        workload = WORKLOADS[cell.workload]
        if not fits(workload, sourced=source.sourced, within=source.within):
            raise ValueError(f"{cell.source} does not suit the workload {cell.workload!r}")
        source.orchestrated = workload.hurried
        source.watchers = len(workload.watchers)
        if cell.fault != RANDOM:
            source.faults.rate = 0.0  # only the requested fault happens
        with shortened(workload, chance, sourced=source.sourced) as times:
            _Run(result, chance, source, times).play()
    except Exception:
        result.troubles.append(traceback.format_exc())
    finally:
        source.heal()
        source.close()
    result.troubles += [f"left behind: {name}" for name in measure.threads_left(threads)]
    result.took = time.monotonic() - began
    return result


class _Run:
    """The threads of a cell: misfortunes (the calling thread), the writer, changes of watchers, samples."""

    def __init__(self, result: Result, chance: random.Random, source: Source, times: Times) -> None:
        self.result = result
        self._cell = result.cell
        self._workload = WORKLOADS[self._cell.workload]
        self._chance = chance
        self._source = source
        self._times = times
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._writer_chance = random.Random(chance.random())
        self._transactions = self._workload.transactions(self._writer_chance)
        self._counted = self._workload.counted and not self._cell.seconds
        self._seconds = self._cell.seconds or SECONDS
        self._written = self._recorded = 0  # bytes
        self._closed = False
        self._put_when_closed = 0
        self._told: dict[str, Sequence[TruthCommit] | None] = {}
        if self._cell.fault not in (RANDOM, NONE, *source.misfortunes()):
            raise ValueError(f"{self._cell.source} has no fault {self._cell.fault!r}")
        self._plugin = source.transport()
        self._audience = Audience(self._plugin, source, self._workload, times, chance)

    def play(self) -> None:
        source = self._source
        source.course.max_pending = self._times.max_pending
        for _ in range(self._chance.choice((0, 3)) if self._workload.hurried else 5):
            self._write()
        before = source.course.before = measure.footprint(source.server_watchers)
        try:
            self._live()
            if self._workload.leaves:
                self._leave_all()
            source.heal()
            self._audience.heal()
            if not self._workload.leaves:
                self._audience.ask_all()
                self._converge()
        finally:
            self._over.set()
            self._close()
        source.course.after = measure.footprint_after(before, lambda: source.server_watchers)
        self._check()

    def _live(self) -> None:
        """Run the misfortunes of the source and of the watchers until the time is over."""
        self._audience.gather()
        self._start()
        bodies: list[Callable[[], None]] = [self._write_on, self._come_and_go, self._measure]
        threads = [threading.Thread(target=self._guarded, args=(body,), name=body.__name__) for body in bodies]
        for thread in threads:
            thread.start()
        try:
            self._misfortunes()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _start(self) -> None:
        while True:  # an error that is not about the connection is for the caller to handle, here by a retry
            try:
                self._plugin.after_init()
                return
            except Exception:
                if self._source.faults.rate == 0.0:
                    raise

    # What happens at the source.

    def _misfortunes(self) -> None:
        faults, known = self._source.misfortunes(), self._known()
        deadline = time.monotonic() + (LONGEST if self._counted else self._seconds)
        latest = deadline + EXTENSION * self._seconds
        first = True
        while not self._over.is_set():
            if time.monotonic() >= deadline:
                if not self._lacks_evidence() or time.monotonic() >= latest:
                    break
                deadline = min(time.monotonic() + 1.0, latest)
            if self._workload.hurried:
                pause = self._chance.uniform(0, self._source.pace * 2.8)
            elif first:
                pause = min(self._seconds / 2, self._chance.uniform(*FIRST))
            else:
                pause = self._chance.uniform(*NEXT)
            first = False
            self._over.wait(min(pause, deadline - time.monotonic()))
            if known and not self._over.is_set() and time.monotonic() < deadline:
                name = self._chance.choice(known)
                self._strike(name, faults[name])

    def _lacks_evidence(self) -> bool:
        """True for a memory workload of full length whose writer, on a slow machine, has not written enough yet."""
        return 0 < self._workload.least <= self._seconds and not memory_tells(self._source.course)

    def _known(self) -> list[str]:
        return {RANDOM: list(self._source.misfortunes()), NONE: []}.get(self._cell.fault, [self._cell.fault])

    def _strike(self, name: str, happens: Misfortune) -> None:
        counts = self.result.misfortunes
        counts[name] = counts.get(name, 0) + 1
        began = time.monotonic()
        happens()
        self._source.course.strikes.append(Strike(name, began, time.monotonic()))

    def _write_on(self) -> None:
        if self._workload.rate is None:
            return
        pace = Pace(self._workload, self._writer_chance, self._over.wait)
        left = self._source.transactions if self._counted else -1
        try:
            while left and not self._over.is_set():
                left -= 1
                pace.keep(self._write(), self._source.pace)
        finally:
            if self._counted:
                self._over.set()

    def _write(self, ops: Ops | None = None) -> int:
        """Write one transaction; return its number of operations."""
        ops = ops or next(self._transactions)
        self._source.write(ops)
        self._written += sum(len(key) + len(value or b"") for key, value in ops)
        self._recorded += sum(300 + min(LONG, len(value or b"")) for _, value in ops)
        return len(ops)

    def _come_and_go(self) -> None:
        self._audience.crowd(self._over)

    def _measure(self) -> None:
        while not self._over.wait(measure.EVERY):
            ways = self._plugin.status().subscriptions
            written = self._written + self._source.written
            recorded = self._audience.recorded + self._recorded
            pending = {name: one.pending for name, one in ways.items()}
            self._source.course.samples.append(measure.sample(pending, written, recorded))

    def _leave_all(self) -> None:
        """Close the transport during a misfortune."""
        names = self._known()
        closer = threading.Timer(self._chance.uniform(*MIDST), self._guarded, [self._close_plugin])
        closer.start()
        try:
            if names:
                name = self._chance.choice(names)
                self._strike(name, self._source.misfortunes()[name])
        finally:
            closer.join()

    # The end.

    def _converge(self) -> None:
        course = self._source.course
        course.healed = time.monotonic()
        course.converged = self._all_right()
        if course.converged is None:
            return
        self.result.converged = course.converged - course.healed
        if self.result.converged < CONVERGENCE / 2:  # a watcher that has stopped would also look converged
            self._write(random_puts(self._chance, 3, self._workload.known_keys()))
            self._all_right()

    def _all_right(self) -> float | None:
        """The time at which every view was correct; None if that never happened."""
        state = dict(self._source.truth.state)
        deadline = time.monotonic() + PATIENCE
        while True:
            now = time.monotonic()
            waiting = self._behind(state)
            if not waiting:
                return now
            if now > deadline:
                self.result.troubles.append(f"never converged: {waiting}; {self._plugin.status()}")
                return None
            time.sleep(max(0.002, 2 * (time.monotonic() - now)))  # checking must not take most of the time

    def _behind(self, state: Mapping[str, bytes]) -> list[str]:
        """What is behind: the plugin, or watchers with a wrong view or with events in flight."""
        registry = self._plugin.registry
        if self._source.revision not in (0, registry.revision):
            return ["the plugin"]
        if behind := self._audience.behind(state):
            return behind
        held = {kv.get_key(): brief(kv.get_value(BytesValue()).value) for kv in registry.items()}
        return [] if held == state else ["the plugin"]

    def _close(self) -> None:
        """End everything: the history is complete."""
        members = self._audience.members
        end = time.monotonic()
        self._audience.heal()
        for log in self._audience.logs:
            log.end = end
        before = [(member, log, list(log.entries)) for member in members for log in _logs(member)]
        if not self._closed:
            self._close_plugin()
        if self._source.orchestrator is not None:
            self._source.orchestrator.close()
        for member in members:
            member.consumer.stop()
            self._errors += member.consumer.errors
        try:
            self._source.settle()
            self._told = {name: part.history() for name, part in self._source.parts.items()}
        except Exception as error:
            # After a transport was closed in the middle of something, the source need not agree with it.
            if not (self._workload.leaves and isinstance(error, AssertionError)):
                self._errors.append(error)
        if self._audience.puts != self._put_when_closed:
            self.result.troubles.append("I9 violated: an event was put after close() of the transport had returned")
        for member, log, entries in before:
            if not member.closed:
                log.entries = entries

    def _close_plugin(self) -> None:
        """Close the plugin from this thread, another one, or the one of a consumer; then close it again."""
        self._closed = True
        ways = ["here", "another thread", *["a consumer's thread"] * bool(self._audience.members)]
        way = self._chance.choice(ways)
        over = threading.Event()

        def close() -> None:
            # It closes all registrations; an answer that comes from now on may find its event settled by that.
            now = time.monotonic()
            for log in self._audience.logs:
                log.entries.append(Asked(now, "close", "", False))
            try:
                measure.close(f"transport, {way}", self._plugin.close, self._source.course, self._workload.pause)
            finally:
                over.set()

        if way == "here":
            close()
        elif way == "another thread":
            threading.Thread(target=self._guarded, args=(close,), name="closes").start()
        else:
            self._chance.choice(self._audience.members).consumer.ask(close)
        returned = over.wait(PATIENCE)
        self._put_when_closed = self._audience.puts
        if not returned:
            self.result.troubles.append(f"I15 violated: close() of the transport from {way} does not return")
        measure.close("transport, again", self._plugin.close, self._source.course, 0.0)

    def _check(self) -> None:
        result, workload = self.result, self._workload
        result.troubles += ["".join(traceback.format_exception(error)) for error in self._errors]
        for member in self._audience.members:
            for log in _logs(member):
                log.complete = (result.converged is not None or not member.closed) and not workload.leaves
        course = self._source.course
        course.slowdown = slowdown()
        proofs: Counter[str] = Counter()
        for name, part in self._source.parts.items():
            judgement = judge(
                part.truth,
                [log for log in self._audience.logs if log.source == name],
                course,
                self._told.get(name),
                convergence=self._source.convergence * course.slowdown,
                calm=self._cell.fault == NONE,
                idle=workload.rate is None,
                failing=workload.fails,
            )
            result.violations += map(str, judgement.violations)
            proofs += judgement.evidence
            result.felt += [recovery.seconds for recovery in judgement.recovered]
            if not workload.leaves:  # here the only requirement is that the transport can be closed
                result.lacks += judgement.lacks
        result.evidence = dict(proofs)
        for put in (put for log in self._audience.logs for put in log.puts()):
            result.events += 1
            if isinstance(put, PutResync):
                result.resyncs[put.reason.value] = result.resyncs.get(put.reason.value, 0) + 1
            else:
                result.changes += len(put.changes)

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            self._errors.append(error)


def _logs(member: Any) -> list[Log]:
    """The logs of a watcher."""
    logs: list[Log] = member.consumer.recorder.logs
    return logs
