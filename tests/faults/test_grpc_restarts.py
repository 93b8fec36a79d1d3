"""An agent that dies and comes back with nothing, again and again, while one sender goes on: C2, C3, C17, I9."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

import pytest

from datasync.grpcsync import Limits, serve
from datasync.syncbase.change import ChangeResp
from tests.conftest import wait_until
from tests.faults.checkers.judge import check_all
from tests.faults.checkers.sender_log import Applied, check_sender
from tests.faults.history import Truth
from tests.faults.sources.grpc import MESSAGE_SIZE, GrpcTransport, held, observed
from tests.faults.sources.grpc_process import Sender, sender_options
from tests.faults.sources.source import random_ops
from tests.faults.workloads.consumers import MANNERS, Consumer, Membership
from tests.support.proxy import free_port


class Life:
    """One life of the agent: a registry that begins empty, and watchers who know nothing of the life before."""

    def __init__(self, port: int, number: int, chance: random.Random) -> None:
        self.truth = Truth()
        self.applied: list[Applied] = []
        self._server = serve(f"127.0.0.1:{port}", limits=Limits(message_size=MESSAGE_SIZE))
        self._mirror: dict[str, bytes] = {}
        self.registry = self._server.adapter.registry
        self.registry.observe(self._observe)
        self.members = []
        for manners in ("fast", "slow", "elsewhere"):
            consumer = Consumer(f"{manners}-{number}", MANNERS[manners], chance, abandon=10.0, room=0, shared=True)
            member = Membership(GrpcTransport(self._server.adapter), consumer, [""], 1)
            consumer.recorder.log.sourced = False
            consumer.start()
            self.members.append(member)

    def end(self, *, complete: bool) -> list[str]:
        """Die; what was wrong in this life."""
        logs = [member.consumer.recorder.log for member in self.members]
        for log in logs:
            log.complete, log.end = complete, time.monotonic()
        entries = [list(log.entries) for log in logs]
        self._server.close()
        for member in self.members:
            member.consumer.stop()
        troubles = [str(error) for member in self.members for error in member.consumer.errors]
        for log, seen in zip(logs, entries, strict=True):
            log.entries = seen
            troubles += map(str, check_all(self.truth, log))
        return troubles

    def _observe(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        applied, ops = observed(self.registry, self._mirror, revision, changes)
        self.applied.append(applied)
        self.truth.record(revision, ops)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_i9_c17_an_agent_that_lost_its_state_gets_all_of_it_before_any_change(seed: int) -> None:
    # given a sender that goes on for four lives of its agent
    chance = random.Random(seed)
    port = free_port()
    sender = Sender(sender_options(f"127.0.0.1:{port}", "", chance))
    sender.start()
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.005):
            if sender.open < 64:
                sender.ops(random_ops(chance))

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    lives: list[Life] = []
    troubles: list[str] = []
    try:
        for number in range(4):
            life = Life(port, number, random.Random(chance.random()))
            lives.append(life)
            wait_until(lambda life=life: len(life.applied) > 30, "the sender is back, and goes on")
            if number < 3:
                troubles += life.end(complete=False)
        # when it is done
        over.set()
        writer.join()
        sender.settle()
        wait_until(lambda: sender.settled, "the sender is done")
        last = lives[-1]
        wait_until(
            lambda: all(member.view_is(sender.wanted) for member in last.members), "everybody sees what it wants"
        )
        troubles += last.end(complete=True)
    finally:
        over.set()
        writer.join()
        sender.close()
    # then each life began with the full state, and nothing was lost, invented or late in any of them
    assert all(life.applied[0].state is not None for life in lives[1:])
    assert held(last.registry) == sender.log.wanted
    assert troubles + check_sender(sender.log, [one for life in lives for one in life.applied]) == []
