"""A Redis server that programs without the library write to as well, in every way that changes a key."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasync.keyval.redis import RedisConfig, RedisStore
from tests.faults.history import TruthCommit, brief
from tests.faults.sources.redis import RedisFaults
from tests.faults.sources.source import Misfortune, Ops
from tests.support.proxy import TcpProxy
from tests.support.redis_servers import RedisServer, find_redis

#: Seconds within which the log must have what another program wrote.
ABSORBED = 20.0


class RedisForeignSource(RedisFaults):
    """The writer is another program: SET, DEL, APPEND, RENAME, expiry and changes of type, each a command of its own.

    The library's log is the truth about the order; that it ends with what the server holds is checked at the end.
    Changes that follow one another faster than they are noticed are one commit, so each is waited for.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._server = RedisServer(find_redis(), Path(self._folder.name) / "data").start()
        self._proxies = [TcpProxy(("127.0.0.1", self._server.port))]
        host, port = self._proxies[0].address.split(":")
        here = (("127.0.0.1", self._server.port),)
        foreign: dict[str, Any] = {"foreign_writers": True, "foreign_prefix": self.prefix}
        # A third one notices: its connections are as good as those of a process elsewhere.
        self._noticing = RedisStore(RedisConfig(addresses=here, **foreign, **self._settings()))
        self._noticing.stream("", self._noticing.scan("").revision)
        self._read = 1
        self._open(
            RedisConfig(addresses=here, **self._patient()),
            RedisConfig(addresses=((host, int(port)),), **foreign, **self._settings()),
        )
        self._sync()

    def _master(self) -> RedisServer:
        return self._server

    def _stop(self) -> None:
        self._noticing.close()
        self._server.stop()

    def write(self, ops: Ops) -> None:
        """Write one key after another, as a program would, and wait until the log has it."""
        with self.lock:
            for key, value in ops[:5]:
                name = self.prefix + key
                before = self._patient_ask("GET", name)
                if value is None:
                    how = self.chance.choice((("DEL", name), ("UNLINK", name), ("GETDEL", name)))
                    self._patient_ask(*how)
                else:
                    self._put(name, value)
                if self._patient_ask("GET", name) != before:
                    self._sync(wait=True)

    def _put(self, name: str, value: bytes) -> None:
        way = self.chance.randrange(4)
        if way == 0:
            self._patient_ask("APPEND", name, value)
        elif way == 1:
            self._patient_ask("SET", "elsewhere", value)
            self._patient_ask("RENAME", "elsewhere", name)
        else:
            self._patient_ask("SET", name, value)

    def _patient_ask(self, *command: Any) -> Any:
        return self._writer._patiently(lambda: self._ask(*command))

    def _sync(self, *, wait: bool = False) -> None:
        """Take what the log has by now into the record; *wait* for at least one commit."""
        deadline = time.monotonic() + ABSORBED
        while True:
            commits, last = self._writer._patiently(self._writer._log)
            fresh = [commit for revision, commit in sorted(commits.items()) if revision > self._read]
            self._read = max(self._read, last, *commits)
            for commit in fresh:
                self.truth.record(commit.revision, commit.ops)
            if fresh or not wait:
                return
            assert time.monotonic() < deadline, "the log has no commit of what another program wrote"
            time.sleep(0.003)

    def misfortunes(self) -> dict[str, Misfortune]:
        names = (
            "reset",
            "drop",
            "cut",
            "black-hole",
            "black-hole-down",
            "delay",
            "clients-killed",
            "scripts-forgotten",
        )
        common = super().misfortunes()
        return {
            **{name: common[name] for name in names},
            "written-while-cut": lambda: self.cut_off(self._some),
            "kill9": self._again,
            "expires": self._expire,
            "other-type": self._other_type,
            "renamed": self._rename,
            "mixed-writers": self._library_too,
        }

    def heal(self) -> None:
        if not self._server.running:
            self._server.start()
        super().heal()

    def _again(self) -> None:
        with self.lock:
            self._server.kill()
            self.faults.healed.wait(self.chance.uniform(0, 0.3))
            self._server.start()
            self._sync()

    def _expire(self) -> None:
        with self.lock:
            self._patient_ask("SET", self.prefix + "a/expires", b"%d" % time.monotonic_ns(), "PX", 60)
            deadline = time.monotonic() + ABSORBED
            # It may expire before anybody noticed that it was there.
            while self._patient_ask("GET", self.prefix + "a/expires") is not None or "a/expires" in self.truth.state:
                self._sync()
                assert time.monotonic() < deadline, "the log does not have that a key expired"

    def _other_type(self) -> None:
        """A key becomes a list, which no reader can have as a value: it is gone for them."""
        with self.lock:
            key = next(iter(self.truth.state), None)
            if key is not None:
                self._patient_ask("DEL", self.prefix + key)
                self._sync(wait=True)
                self._patient_ask("RPUSH", self.prefix + key, b"x")
                self._patient_ask("DEL", self.prefix + key)
                self._sync()

    def _rename(self) -> None:
        with self.lock:
            keys = [key for key in self.truth.state if key != "b/renamed"]
            if keys:
                self._patient_ask("RENAME", self.prefix + keys[0], self.prefix + "b/renamed")
                wanted = brief(self._patient_ask("GET", self.prefix + "b/renamed"))
                deadline = time.monotonic() + ABSORBED
                while keys[0] in self.truth.state or self.truth.state.get("b/renamed") != wanted:
                    self._sync()
                    assert time.monotonic() < deadline, "the log does not have a rename"

    def _library_too(self) -> None:
        """A client of the library writes the same keys."""
        with self.lock:
            self._sync()
            for key in list(self.truth.state)[:5]:
                self._writer.write([(key, b"w%d" % time.monotonic_ns())])
            self._read = max(self._read, self._writer.highest)
            self._sync()

    def settle(self) -> None:
        self._sync()
        self._noticing.close()
        super().settle()

    def history(self) -> Sequence[TruthCommit] | None:
        return self._writer.account()
