"""An etcd whose other clients own many client-lifetime keys: leases are lost, and every key must come back once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from datasync.errors import DatasyncError
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.keyval.locks.leadership import Leadership
from datasync.keyval.types import Condition, PutOp
from tests.faults.sources.etcd import EtcdSource
from tests.faults.sources.source import Misfortune
from tests.support.child_process import Peer
from tests.support.etcd_keys import held
from tests.support.proxy import TcpProxy
from tests.support.timing import slowdown

#: Keys of an owner, and of one with a slow connection.
MANY, FEWER = 10_000, 400
#: Seconds that a lease lives, and seconds of delay in each direction of a slow connection.
TTL, DELAY = 5, 0.02
#: Seconds within which keys are back, and within which they are gone after close, on an idle machine.
BACK, GONE = 30.0, 3.0
#: Outside the watched prefix: owners' keys, and the election.
OWNED, ELECTION = "/owned/", "/election"


class EtcdLeasesSource(EtcdSource):
    """Each misfortune is the whole life of an owner, which ends with all keys gone."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._owners = 0

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "lease-lost-with-10000-keys": lambda: self._life(MANY, lambda owner, way: self._revoke()),
            "lease-lost-on-a-slow-connection": lambda: self._life(FEWER, self._revoke_while_slow),
            "owner-suspended-with-10000-keys": lambda: self._life(MANY, self._suspend),
            "owner-cut-off-with-10000-keys": lambda: self._life(MANY, self._cut),
            "kill9-with-10000-keys": lambda: self._life(MANY, lambda owner, way: self._again(self._server.kill)),
            "candidates-removed": self._elections,
        }

    # Client-lifetime keys.

    def _life(self, number: int, loses: Callable[[Peer, TcpProxy], object]) -> None:
        self._owners += 1
        prefix = f"{OWNED}{self._owners}/"
        with TcpProxy(("127.0.0.1", self._server.port)) as way:
            owner = Peer("tests.faults.sources.lease_owner", way.address, "--ttl", str(TTL))
            owner.start()
            try:
                answer = owner.ask("put", prefix=prefix, number=number)
                assert not answer, answer
                loses(owner, way)
                self._soon(BACK, "all keys are back", lambda: self._complete(prefix, number))
                before = self._held(prefix)
                self.faults.healed.wait(1.2 * TTL)
                assert self._held(prefix) == before, "the keys were lost again, or put again once more"
                assert {(key[1], key[2]) for key in before} == {(1, before[0][2])}, (
                    "a key was put twice, or left behind"
                )
                way.heal()
                owner.ask("close", prefix=prefix)
                self._soon(GONE, "no key is left", lambda: not self._held(prefix))
            finally:
                owner.stop()

    def _revoke(self) -> None:
        (lease,) = {key[2] for key in self._held(OWNED)}
        self._server.ctl("lease", "revoke", f"{lease:x}")

    def _revoke_while_slow(self, owner: Peer, way: TcpProxy) -> None:
        way.delay(DELAY)
        self._revoke()

    def _suspend(self, owner: Peer, way: TcpProxy) -> None:
        owner.freeze()
        self._soon(BACK, "the lease of the suspended owner has expired", lambda: not self._held(OWNED))
        owner.thaw()

    def _cut(self, owner: Peer, way: TcpProxy) -> None:
        way.refuse()
        self._soon(BACK, "the lease of the disconnected owner has expired", lambda: not self._held(OWNED))
        way.heal()

    def _complete(self, prefix: str, number: int) -> bool:
        keys = self._held(prefix)
        return len(keys) == number and len({lease for _, _, lease in keys}) == 1

    def _held(self, prefix: str) -> list[tuple[bytes, int, int]]:
        """Key, version and lease of each key under *prefix*."""
        while True:
            try:
                return [(kv.key, kv.version, kv.lease) for kv in held(self._writer.store, prefix)]
            except DatasyncError:  # the server was killed
                self.faults.healed.wait(0.05)

    def _soon(self, seconds: float, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds * min(slowdown(), 2.0)  # the cell itself has a limit
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            self.faults.healed.wait(0.05)

    # Elections.

    def _elections(self) -> None:
        """Remove candidates by hand while they lead and wait: tokens grow from leader to leader."""
        stores = [EtcdStore(EtcdConfig(endpoints=(self._server.endpoint,), session_ttl=TTL)) for _ in range(4)]
        over = threading.Event()
        tokens: list[int] = []
        errors: list[BaseException] = []

        def candidate(store: EtcdStore, chance: random.Random) -> None:
            try:
                while not over.is_set():
                    with store.campaign(ELECTION, timeout=60) as leadership:
                        self._lead(leadership, tokens, over, chance)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=candidate, args=(store, random.Random(self.chance.random())), name="candidate")
            for store in stores
        ]
        for thread in threads:
            thread.start()
        for _ in range(self.chance.randint(10, 20)):
            self.faults.healed.wait(self.chance.uniform(0.1, 0.5))
            keys = self._held(f"{ELECTION}/")
            if keys:
                self._remove(self.chance.choice(keys)[0].decode())
        over.set()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
        assert not errors, errors
        assert tokens, "nobody was elected"
        self._soon(GONE, "no candidate is left", lambda: not self._held(f"{ELECTION}/"))

    def _remove(self, name: str) -> None:
        """Delete or overwrite the key of a candidate, or revoke its lease, if it is still there."""
        way = self.chance.choice(("delete", "overwrite", "revoke"))
        if way == "delete":
            self._server.ctl("del", name)
        elif way == "revoke":
            self._server.ctl("lease", "revoke", name.rpartition("/")[2], check=False)
        else:  # an absent key must not be put: it would be a candidate that nobody withdraws
            self._writer.store.commit([PutOp(name, b"x")], [Condition(name, b"")])

    def _lead(self, leadership: Leadership, tokens: list[int], over: threading.Event, chance: random.Random) -> None:
        """What a protected resource does: it takes work under the greatest token, and refuses a leader's first work."""
        with self.lock:
            if leadership.is_leader:
                assert not tokens or leadership.revision > max(tokens), "the token of a new leader is not the greatest"
                tokens.append(leadership.revision)
        over.wait(chance.uniform(0.05, 0.4))
