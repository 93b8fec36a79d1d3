"""An etcd cluster as the source of cells, a proxy for each member: members die, freeze, lag, lose the leader."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from datasync.syncbase.status import TransportState
from tests.faults.sources.behind_proxies import IDLE_LIMIT
from tests.faults.sources.etcd import MAX_OPS, EtcdFaults
from tests.faults.sources.source import Misfortune, random_ops
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdCluster, EtcdServer, etcdctl

#: Milliseconds between two heartbeats of the leader, and without one until another is elected. Five elections without
#: a leader are a watch's end.
HEARTBEAT, ELECTION = 50, 500
#: Seconds that a cluster without a quorum may take until the status says so.
NO_LEADER = 10.0


class EtcdClusterSource(EtcdFaults):
    """The watched store has the addresses of the proxies, the writer those of the members."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        flags = ("--heartbeat-interval", str(HEARTBEAT), "--election-timeout", str(ELECTION))
        self._cluster = EtcdCluster(
            self._program, Path(self._folder.name), "--max-txn-ops", str(MAX_OPS), *flags, network=True
        ).start()
        self._servers = self._cluster.members
        self._proxies = self._ways_in()
        self._open()

    def _ways_in(self) -> Sequence[TcpProxy]:
        """What the watched store connects to."""
        return [TcpProxy(("127.0.0.1", server.port)) for server in self._servers]

    def misfortunes(self) -> dict[str, Misfortune]:
        connected, leader, follower = self._connected, self._cluster.leader, self._follower
        return {
            **super().misfortunes(),
            "leader-kill9": lambda: self._kill(leader),
            "follower-kill9": lambda: self._kill(follower),
            "connected-kill9": lambda: self._kill(connected),
            "leader-sigstop": lambda: self._freeze(leader),
            "connected-sigstop": lambda: self._freeze(connected),
            "connected-cut": self._part_with_connected,
            "quorum-lost": self._lose_quorum,
            "quorum-frozen": self._freeze_quorum,
            "leader-partitioned": lambda: self._partition(leader),
            "connected-partitioned": lambda: self._partition(connected),
            "leader-moved": self._move_leader,
            "lagging-member": self._meet_lagging,
            "rolling-restart": self._roll,
            "all-kill9": self._kill_all,
        }

    def heal(self) -> None:
        self._cluster.heal()
        for server in self._servers:
            if server.running:
                server.thaw()
        self._cluster.start()
        self._cluster.leader()
        super().heal()

    def close(self) -> None:
        super().close()
        self._cluster.stop()

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self._servers[0].endpoint, [("grpc.max_receive_message_length", -1)])

    # Members.

    def _connected(self) -> EtcdServer:
        """The member that the watched store is connected to."""
        counted = [proxy.connections for proxy in self._proxies]
        return self._servers[counted.index(max(counted))]

    def _follower(self) -> EtcdServer:
        leader = self._cluster.leader()
        return self.chance.choice([server for server in self._servers if server is not leader])

    def _others(self, member: EtcdServer) -> list[EtcdServer]:
        return [server for server in self._servers if server is not member]

    # Faults.

    def _kill(self, who: Callable[[], EtcdServer]) -> None:
        member = who()
        member.kill()
        self.faults.healed.wait(self.chance.uniform(0, 2.0))
        member.start()

    def _freeze(self, who: Callable[[], EtcdServer]) -> None:
        """Freeze for more or less time than the idle limit or an election takes."""
        member = who()
        member.freeze()
        self.faults.healed.wait(self.chance.uniform(0.1, 2.5 * IDLE_LIMIT))
        member.thaw()

    def _partition(self, who: Callable[[], EtcdServer]) -> None:
        """Partition the member from the others but not from its clients; the others continue without it."""
        self._cluster.cut(who())
        self.faults.healed.wait(self.chance.uniform(0.2, 6 * ELECTION / 1000))
        self._cluster.heal()

    def _part_with_connected(self) -> None:
        """Disturb only its proxy: there are two others."""
        proxy = self._proxies[self._servers.index(self._connected())]
        self.chance.choice((proxy.refuse, proxy.black_hole, proxy.freeze))()
        self.faults.healed.wait(self.chance.uniform(0.1, 2.5 * IDLE_LIMIT))
        proxy.heal()

    def _lose_quorum(self) -> None:
        """Kill both others; the member has no leader and reports it, and so does the status (I14, C18)."""
        others = self._others(self._connected())
        for member in others:
            member.kill()
        self._expect_down()
        for member in others:
            member.start(wait=False)
        for member in others:
            member.wait_up()

    def _freeze_quorum(self) -> None:
        others = self._others(self._connected())
        for member in others:
            member.freeze()
        self._expect_down()
        for member in others:
            member.thaw()

    def _expect_down(self) -> None:
        """Wait until the status reports that the source is down, or for a shorter time."""
        if self.chance.random() < 0.3:
            self.faults.healed.wait(self.chance.uniform(0, 2.0))
            return
        until = time.monotonic() + NO_LEADER
        while self._plugin.status().state is TransportState.READY and not self.faults.healed.is_set():
            assert time.monotonic() < until, "without a quorum the source still counts as ready"
            self.faults.healed.wait(0.02)

    def _move_leader(self) -> None:
        leader = self._cluster.leader()
        target = self.chance.choice(self._others(leader))
        for line in etcdctl(leader.endpoint, "member", "list").splitlines():
            fields = [field.strip() for field in line.split(",")]
            if f"http://{target.endpoint}" in fields:
                leader.ctl("move-leader", fields[0], check=False)  # another election may have come before

    def _meet_lagging(self) -> None:
        """Freeze a follower during many writes, and make it the only reachable member: it must not report an old state
        (C2, I4)."""
        member = self._follower()
        member.freeze()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        for _ in range(self.chance.randint(1, 30)):
            self.write(random_ops(self.chance))
        self._reach_only(member)
        if self.chance.random() < 0.5:  # and a list is requested from it
            with self.lock:
                self._writer.foreign()
                self._writer.compact()
        member.thaw()
        self.faults.healed.wait(self.chance.uniform(0.1, 1.5))
        self._mend()

    def _reach_only(self, member: EtcdServer) -> None:
        for server, proxy in zip(self._servers, self._proxies, strict=True):
            if server is not member:
                proxy.refuse()

    def _roll(self) -> None:
        """Restart all members, one after another."""
        for member in self.chance.sample(self._servers, len(self._servers)):
            self.chance.choice((member.stop, member.kill))()
            member.start()
            if self.faults.healed.wait(self.chance.uniform(0, 0.5)):
                return

    def _kill_all(self) -> None:
        for member in self._servers:
            member.kill()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self._cluster.start()
