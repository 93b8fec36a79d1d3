"""The watchers of a cell: who is there, who comes and goes, and whether all know what they should."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import SubscriptionState, SubscriptionStatus
from tests.faults.history import Log
from tests.faults.sources.aggregate_transport import members_of, sources_of
from tests.faults.sources.source import PREFIXES, Source
from tests.faults.workloads import measurements as measure
from tests.faults.workloads.consumers import ANSWERING, MANNERS, OBLIGING, Consumer, Membership
from tests.faults.workloads.loops import Loop, make_loop
from tests.faults.workloads.times import Times
from tests.faults.workloads.workload import Workload

#: Watchers that come later, at most.
LATE = 6


class Audience:
    """Everybody who watches *plugin*. Threads: ``crowd`` has one of its own, the rest is called by the main one."""

    def __init__(self, plugin: Any, source: Source, workload: Workload, times: Times, chance: random.Random) -> None:
        self._plugin = plugin
        self._source = source
        self._workload = workload
        self._times = times
        self._chance = chance
        self._crowd_chance = random.Random(chance.random())
        self.members: list[Membership | Loop] = []
        for one in members_of(plugin):
            self._note_requests(one.registry)

    @property
    def logs(self) -> list[Log]:
        return [log for member in self.members for log in member.consumer.recorder.logs]

    @property
    def puts(self) -> int:
        """Events that were put so far."""
        return sum(member.consumer.recorder.count for member in list(self.members))

    @property
    def recorded(self) -> int:
        """Bytes that the logs take, about."""
        return sum(member.consumer.recorder.size for member in list(self.members))

    def gather(self) -> None:
        """Those who are there from the beginning."""
        for number, manners in enumerate(self._workload.watchers):
            self._join(f"watcher-{number}", self._chance, manners)
        if not self._workload.watchers:
            for number in range(self._chance.randint(1, 3)):
                self._join(f"early-{number}", self._chance)

    def crowd(self, over: threading.Event) -> None:
        """Until it is *over*: somebody changes what he wants to hear of, comes, or goes."""
        chance = self._crowd_chance
        pause = 2 * self._source.pace if self._workload.hurried else self._workload.changes
        late = 0
        while pause and not over.wait(chance.uniform(0, 2 * pause)):
            dice = chance.random()
            if dice < 0.6 and self.members:
                chance.choice(self.members).change(chance, PREFIXES)
            elif dice < 0.8 and late < LATE:
                late += 1
                self._join(f"late-{late}", chance, "" if self._workload.hurried else "fast")
            elif dice < 0.87 and self.members:
                self._leave(chance.choice(self.members), chance)
            elif dice > 0.93:
                self.ask_all()

    def ask_all(self) -> None:
        """Where there is an orchestrator, let it ask everybody to start over."""
        if self._source.orchestrator is not None:
            self._source.orchestrator.do_resync()

    def heal(self) -> None:
        """From now on every consumer behaves."""
        for member in list(self.members):
            member.consumer.heal()

    def behind(self, state: Mapping[str, bytes]) -> list[str]:
        """Whose view is not yet *state*, as far as it is his business, or who has something under way."""
        members = {one.consumer.recorder.log.name: one for one in self.members if not one.closed}
        ways = self._plugin.status().subscriptions
        busy = [name for name in members if not _quiet(ways[name])]
        return busy or [name for name, member in members.items() if not member.view_is(state)]

    def _join(self, name: str, chance: random.Random, manners: str = "") -> None:
        workload = self._workload
        chance = random.Random(chance.random())
        # A caller is told of a refusal and decides himself: then the subscriber's view is nobody's promise.
        callers = OBLIGING if self._source.within else ANSWERING
        manners = manners or chance.choice(list(MANNERS) if self._source.sourced else callers)
        if manners not in MANNERS:
            named = f"{name}-{manners}"
            self._add(make_loop(manners, self._plugin, self._source.serializer, named, chance, self._times.abandon))
            return
        consumer = Consumer(
            f"{name}-{manners}",
            replace(MANNERS[manners], pause=workload.pause),
            chance,
            abandon=self._times.abandon,
            room=chance.choice((0, 0, 1, 2, 5)) if workload.room is None else workload.room,
            shared=chance.random() < 0.4,
            sources=sources_of(self._plugin),
        )
        prefixes = [""] if workload.whole else chance.sample(PREFIXES, chance.randint(1, 4))
        member = Membership(self._plugin, consumer, prefixes, chance.choice((1, 1, 2, 4)))
        for log in consumer.recorder.logs:
            log.prompt = manners == "fast" and not workload.room and not workload.hurried
        consumer.talk_back = lambda own: self._talk_back(member, own)
        self._add(member)

    def _add(self, member: Membership | Loop) -> None:
        for log in member.consumer.recorder.logs:
            log.sourced, log.backoff = self._source.sourced, self._times.failure_backoff
            log.redeliveries = self._times.redeliveries
        member.consumer.start()
        self.members.append(member)

    def _talk_back(self, member: Membership, chance: random.Random) -> None:
        kind = chance.randrange(3)
        if kind == 0:
            member.change(chance, PREFIXES)
        elif kind == 1:
            self._plugin.registry.items("a/")
        else:
            self._plugin.status()

    def _leave(self, member: Membership | Loop, chance: random.Random) -> None:
        """Close a registration: from here, from its consumer's own thread, from both at once."""
        way = chance.choice(("here", "its consumer", "both"))

        def close() -> None:
            measure.close(f"registration, {way}", member.close, self._source.course, self._workload.pause)

        if member.closed:
            return
        if way != "here":
            member.consumer.ask(close)
        if way != "its consumer":
            close()

    def _note_requests(self, registry: Registry) -> None:
        """A RESYNC that somebody asks for in person waits for no backoff: the checkers need to know when that was."""
        requests = self._source.course.requests

        def noted(request: Callable[..., PropagationFuture]) -> Callable[..., PropagationFuture]:
            def call(*arguments: Any, **options: Any) -> PropagationFuture:
                requests.append(time.monotonic())
                try:
                    return request(*arguments, **options)
                finally:
                    requests.append(time.monotonic())

            return call

        registry.request_resync = noted(registry.request_resync)  # type: ignore[method-assign]
        registry.submit_resync = noted(registry.submit_resync)  # type: ignore[method-assign]


def _quiet(way: SubscriptionStatus) -> bool:
    """True when nothing is under way."""
    if way.in_flight or way.pending or way.owed or way.resync_in is not None:
        return False
    return way.state is SubscriptionState.SYNCED
