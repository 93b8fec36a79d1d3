"""Groups of Redis servers as sources of cells: sentinels with a master and a replica, and a cluster.

No proxy is between: what these sources try is who answers, and what becomes of the commits of the one before.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from datasync.keyval.redis import RedisConfig
from datasync.keyval.redis.topology import slot_of
from tests.faults.sources.redis import RedisFaults
from tests.faults.sources.source import Misfortune, random_ops
from tests.support.redis_servers import MASTER, RedisCluster, RedisServer, SentinelGroup, find_redis, wait_for


class RedisSentinelSource(RedisFaults):
    """A master and a replica that sentinels exchange."""

    _proxies = ()

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._group = SentinelGroup(find_redis(), Path(self._folder.name)).start()
        addresses = tuple(("127.0.0.1", one.port) for one in self._group.sentinels)
        common: dict[str, Any] = {"kind": "sentinel", "master_name": MASTER, "addresses": addresses}
        self._open(RedisConfig(**common, **self._patient()), RedisConfig(**common, **self._settings()))

    def _patient(self) -> dict[str, Any]:
        return {**super()._patient(), "connect_timeout": 20.0, "timeout": 1.0}

    def _master(self) -> RedisServer:
        return self._group.master()

    def _stop(self) -> None:
        self._group.stop()

    def misfortunes(self) -> dict[str, Misfortune]:
        names = ("trimmed-to-head", "big-transaction", "big-value", "clients-killed", "scripts-forgotten")
        common = super().misfortunes()
        return {
            **{name: common[name] for name in names},
            "failover": self._fail_over,
            "failover-asked-for": self._hand_over,
            "master-frozen": self._freeze_master,
            "failover-with-loss": self._lose,
            "replica-killed": self._kill_replica,
            "sentinel-killed": self._kill_sentinel,
        }

    def heal(self) -> None:
        super().heal()
        for one in (*self._group.sentinels, *self._group.servers):
            if one.running:
                one.thaw()
            else:
                one.start()

    def _ready(self) -> None:
        """Both servers are there and one follows the other, or a failover would lose more than was meant."""
        for one in self._group.servers:
            if not one.running:
                one.start()
        self._group.wait_in_sync()

    def _fail_over(self) -> None:
        """The master dies when the replica has everything, and comes back as a replica."""
        with self.lock:
            self._ready()
            master = self._group.master()
            self._caught_up(master)
            master.kill()
            self._group.wait_failover(master)
            master.start()
        self._after()

    def _hand_over(self) -> None:
        with self.lock:
            self._ready()
            master = self._group.master()
            self._caught_up(master)
            self._group.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER)
            self._group.wait_failover(master)
            wait_for(lambda: master.info("replication")["role"] == "slave", "the old master is a replica")
            self._writer.reread()
        self._after()

    def _freeze_master(self) -> None:
        """The master stands still until another one is elected, wakes up, and goes on answering for a while."""
        with self.lock:
            self._ready()
            master = self._group.master()
            self._caught_up(master)
            master.freeze()
            self._group.wait_failover(master)
        self.write(random_ops(self.chance))
        master.thaw()
        self._after()

    def _lose(self) -> None:
        """The replica stands still while the master goes on, and becomes the master without what it missed."""
        with self.lock:
            self._ready()
            master, replica = self._group.master(), self._group.replica()
            self._caught_up(master)
            replica.freeze()
            for _ in range(self.chance.randint(1, 5)):
                self._writer.write(random_ops(self.chance))
            self.faults.healed.wait(self.chance.uniform(0, 0.2))
            master.kill()
            replica.thaw()
            # What lies in the socket of the replica is not lost: only the log of the new master tells.
            self._group.wait_failover(master)
            self._writer.reread()
            if self.chance.random() < 0.5:
                for _ in range(8):
                    self._writer.write(random_ops(self.chance))
            master.start()
        self._after()

    def _kill_replica(self) -> None:
        self._group.replica().kill()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        self._ready()

    def _kill_sentinel(self) -> None:
        sentinel = self.chance.choice(self._group.sentinels)
        sentinel.kill()
        self.faults.healed.wait(self.chance.uniform(0, 0.5))
        sentinel.start()

    def _caught_up(self, master: RedisServer) -> None:
        master.ask("WAIT", 1, 5000, timeout=6.0)

    def _after(self) -> None:
        self.write(random_ops(self.chance))
        self.faults.healed.wait(self.chance.uniform(0, 1.0))


class RedisClusterSource(RedisFaults):
    """Three masters with a replica each; the store is in one slot."""

    _proxies = ()
    _tag = b"{datasync}"

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._cluster = RedisCluster(find_redis(), Path(self._folder.name)).start()
        self._slot = slot_of(b"datasync")
        addresses = tuple(("127.0.0.1", one.port) for one in self._cluster.nodes[:3])
        common: dict[str, Any] = {"kind": "cluster", "tag": "datasync", "addresses": addresses}
        self._open(RedisConfig(**common, **self._patient()), RedisConfig(**common, **self._settings()))

    def _patient(self) -> dict[str, Any]:
        return {**super()._patient(), "connect_timeout": 20.0, "timeout": 1.0}

    def _master(self) -> RedisServer:
        return self._cluster.master_of(self._slot)

    def _stop(self) -> None:
        self._cluster.stop()

    def misfortunes(self) -> dict[str, Misfortune]:
        names = ("trimmed-to-head", "big-transaction", "big-value", "clients-killed", "scripts-forgotten")
        common = super().misfortunes()
        return {
            **{name: common[name] for name in names},
            "slot-moved": self._move,
            "failover": self._fail_over,
            "failover-asked-for": self._hand_over,
            "other-node-killed": self._kill_other,
        }

    def heal(self) -> None:
        super().heal()
        for one in self._cluster.nodes:
            if one.running:
                one.thaw()
            else:
                one.start()

    def _move(self) -> None:
        """Move the slot to another master, key by key, while the writer goes on."""
        source = self._master()
        owners = {self._cluster.master_of(slot).port for slot in range(0, 16384, 1024)} - {source.port}
        port = self.chance.choice(sorted(owners))
        target = next(one for one in self._cluster.nodes if one.port == port)
        ids = {one.port: one.ask("CLUSTER", "MYID").decode() for one in (source, target)}
        target.ask("CLUSTER", "SETSLOT", self._slot, "IMPORTING", ids[source.port])
        source.ask("CLUSTER", "SETSLOT", self._slot, "MIGRATING", ids[target.port])
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", self._slot, 5):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            self.faults.healed.wait(0.002)
        for one in (target, source, *self._cluster.nodes):
            if one.info("replication")["role"] == "master":
                one.ask("CLUSTER", "SETSLOT", self._slot, "NODE", ids[target.port])
        self.write(random_ops(self.chance))

    def _replica_of(self, master: RedisServer) -> RedisServer:
        def follows(one: RedisServer) -> bool:
            told = one.info("replication")
            same = told.get("master_port") == str(master.port)
            return same and told["role"] == "slave" and told["master_link_status"] == "up"

        wait_for(lambda: any(follows(one) for one in self._cluster.nodes if one.running), "the master has a replica")
        return next(one for one in self._cluster.nodes if one.running and follows(one))

    def _fail_over(self) -> None:
        with self.lock:
            master = self._master()
            self._replica_of(master)
            master.ask("WAIT", 1, 5000, timeout=6.0)
            master.kill()
            wait_for(lambda: self._master() is not master, "the replica took over")
            master.start()
        self.write(random_ops(self.chance))
        self.faults.healed.wait(self.chance.uniform(0, 1.0))

    def _hand_over(self) -> None:
        """The replica takes over in agreement with its master: nothing is lost."""
        master = self._master()
        self._replica_of(master).ask("CLUSTER", "FAILOVER")
        deadline = time.monotonic() + 5.0
        while self._master() is master and time.monotonic() < deadline:
            self.faults.healed.wait(0.05)
        self.write(random_ops(self.chance))

    def _kill_other(self) -> None:
        master = self._master()
        other = next(one for one in self._cluster.nodes if one is not master and one.running)
        other.kill()
        self.faults.healed.wait(self.chance.uniform(0, 1.0))
        other.start()
