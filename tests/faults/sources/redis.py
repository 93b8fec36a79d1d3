"""A Redis or Valkey server as the source of cells: killed, frozen, flushed, trimmed, restored, and cut off."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasync.errors import InvalidArgumentError
from datasync.keyval.redis import RedisConfig, RedisStore
from datasync.syncbase.status import TransportState
from tests.faults.history import Silence, TruthCommit
from tests.faults.sources.redis_writer import RedisWriter
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops
from tests.support.proxy import TcpProxy
from tests.support.redis_servers import RedisServer, find_redis, find_valkey

#: Limit of the watched store for one response, in seconds; a stream is found silent one second later.
TIMEOUT = 0.8
IDLE_LIMIT, GRACE = TIMEOUT + 1.0, 1.0
#: Keys of a transaction that is larger than a page of a listing.
MANY = 2000
#: Bytes of a value that no buffer on the way takes at once.
MUCH = 3 << 20


class RedisFaults(Source):
    """Faults of the way to a master, and of its data. The watched store has a proxy before it, the writer has none."""

    prefix = "/h/"
    pace = 0.06
    transactions = 80
    convergence = 5.0
    _tag = b""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-faults-")
        self._kept = chance.choice((100_000, 60))  # commits of history: with the latter it is trimmed all the time
        self._plugin: Any = None
        self._large = 0

    _proxies: Sequence[TcpProxy]
    _writer: RedisWriter
    store: RedisStore

    def _open(self, writer: RedisConfig, watched: RedisConfig) -> None:
        self._writer = RedisWriter(RedisStore(writer), self.prefix, self.truth, self._ask, self._tag)
        self._writer.foreign()  # the first measurement must include its connection
        self.store = RedisStore(watched)

    def _settings(self) -> dict[str, Any]:
        return {"history_commits": self._kept, "connect_timeout": 0.5, "timeout": TIMEOUT}

    def _patient(self) -> dict[str, Any]:
        """The settings of the writer, which waits longer than a server is frozen."""
        return {"history_commits": self._kept, "connect_timeout": 5.0, "timeout": 10.0}

    def _ask(self, *command: Any) -> Any:
        return self._master().ask(*command)

    def _master(self) -> RedisServer:
        raise NotImplementedError

    def transport(self) -> Any:
        self._plugin = super().transport()
        return self._plugin

    def write(self, ops: Ops) -> None:
        with self.lock:
            self._writer.write(ops)

    def misfortunes(self) -> dict[str, Misfortune]:
        chance = self.chance
        return {
            "reset": lambda: self._each(TcpProxy.reset),
            "drop": lambda: self._each(TcpProxy.drop),
            "reset-mid-message": lambda: self._for_a_while(lambda proxy: proxy.reset_after(chance.randint(1, 3000))),
            "cut": self.cut_off,
            "black-hole": lambda: self._swallow(up=True, down=True),
            "black-hole-up": lambda: self._swallow(up=True, down=False),
            "black-hole-down": lambda: self._swallow(up=False, down=True),
            "delay": lambda: self._for_a_while(lambda proxy: proxy.delay(chance.uniform(0.01, 0.1))),
            "rate": lambda: self._for_a_while(lambda proxy: proxy.rate(chance.randint(5_000, 50_000))),
            "trimmed": self._trim_somewhere,
            "trimmed-to-head": self._writer.compact,
            "trimmed-while-cut": lambda: self.cut_off(self._some, self._writer.compact),
            "big-transaction": self._much_at_once,
            "big-value": self._large_value,
            "value-beyond-limit": self._write_too_large,
            "clients-killed": self._kill_clients,
            "output-buffer-limit": self._limit_output,
            "scripts-forgotten": lambda: self._try("SCRIPT", "FLUSH"),
            "foreign-write-while-cut": lambda: self.cut_off(self._foreign),
        }

    def heal(self) -> None:
        super().heal()
        self._mend()

    def settle(self) -> None:
        self.store.close()
        self._writer.check()
        self._writer.store.close()

    def history(self) -> Sequence[TruthCommit] | None:
        return self._writer.account()

    def close(self) -> None:
        self.store.close()
        self._writer.store.close()
        for proxy in self._proxies:
            proxy.close()
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        raise NotImplementedError

    def cut_off(self, *meanwhile: Misfortune) -> None:
        """Refuse connections for a while, and run *meanwhile*."""
        self._each(TcpProxy.refuse)
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        self._mend()

    # The connection.

    def _each(self, happens: Callable[[TcpProxy], object]) -> None:
        for proxy in self._proxies:
            happens(proxy)

    def _mend(self) -> None:
        self._each(TcpProxy.heal)

    def _for_a_while(self, begin: Callable[[TcpProxy], object]) -> None:
        self._each(begin)
        self.faults.healed.wait(self.chance.uniform(0.05, 1.0))
        self._mend()

    def _swallow(self, *, up: bool, down: bool) -> None:
        self._unheard(lambda: self._each(lambda proxy: proxy.black_hole(up=up, down=down)), self._mend)

    def _unheard(self, begin: Misfortune, end: Misfortune) -> None:
        """Make the connection half-open from *begin* to *end*: until that was detected, or for a shorter time."""
        before = self._plugin.status()
        began = time.monotonic()
        begin()
        try:
            if before.state is not TransportState.READY or self.chance.random() < 0.3:
                self.faults.healed.wait(self.chance.uniform(0, 1.3 * IDLE_LIMIT))
            else:
                self._note_silence(began, before.reconnects)
        finally:
            end()

    def _note_silence(self, began: float, reconnects: int) -> None:
        limit = IDLE_LIMIT + GRACE
        until = began + limit + 0.5
        while (now := time.monotonic()) < until and not self.faults.healed.is_set():
            status = self._plugin.status()
            if status.state is not TransportState.READY or status.reconnects > reconnects:
                self.course.silences.append(Silence(began, now, limit))
                return
            began = max(began, now - (status.silence or 0.0))
            self.faults.healed.wait(0.01)
        self.course.silences.append(Silence(began, None, limit, now))

    # The data of the server.

    def _try(self, *command: Any) -> None:
        from redis.exceptions import RedisError

        try:
            self._ask(*command)
        except (RedisError, OSError):
            pass  # the server is down

    def _some(self) -> None:
        for _ in range(3):
            self.write(random_ops(self.chance))

    def _foreign(self) -> None:
        with self.lock:
            self._writer.foreign()

    def _trim_somewhere(self) -> None:
        commits = self.truth.epochs[-1].commits
        if commits:
            self._writer.compact(self.chance.choice(commits).revision)

    def _much_at_once(self) -> None:
        self._large += 1
        keys = [f"z/many/{number:04}" for number in range(MANY)]
        self.write([(key, b"x%d" % self._large) for key in keys])
        self.write([(key, None) for key in keys])

    def _large_value(self) -> None:
        self.write([("z/large", self.chance.randbytes(MUCH))])
        self.written += MUCH
        self.write([("z/large", None)])

    def _write_too_large(self) -> None:
        """Send a value that the server does not take; nothing is lost, and nothing is written."""
        with self.lock:
            self._ask("CONFIG", "SET", "proto-max-bulk-len", 1 << 20)
            try:
                self._writer.write([("z/large", bytes(MUCH))])
            except InvalidArgumentError:
                return
            finally:
                self._ask("CONFIG", "SET", "proto-max-bulk-len", 512 << 20)
            assert not self._writer.held().get("z/large"), "the server took what is beyond its limit"

    def _kill_clients(self) -> None:
        for kind in ("normal", "pubsub"):
            self._try("CLIENT", "KILL", "TYPE", kind)

    def _limit_output(self) -> None:
        """The server closes connections whose responses are larger than a bit."""
        self._try("CONFIG", "SET", "client-output-buffer-limit", "normal 30000 0 0")
        self.faults.healed.wait(self.chance.uniform(0.1, 0.6))
        self._try("CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0")


class RedisSource(RedisFaults):
    """One server behind one proxy."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._server = RedisServer(self._program(), Path(self._folder.name) / "data").start()
        self._proxies = [TcpProxy(("127.0.0.1", self._server.port))]
        self._saved = 0
        self._ask("ACL", "SETUSER", "watched", "on", ">watched", "~*", "+@all")
        host, port = self._proxies[0].address.split(":")
        self._open(
            RedisConfig(addresses=(("127.0.0.1", self._server.port),), **self._patient()),
            RedisConfig(addresses=((host, int(port)),), username="watched", password="watched", **self._settings()),
        )

    def _program(self) -> Path:
        return find_redis()

    def _master(self) -> RedisServer:
        return self._server

    def _stop(self) -> None:
        self._server.stop()

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "kill9": lambda: self._again(self._server.kill),
            "restart": lambda: self._again(self._server.stop),
            "sigstop": lambda: self._unheard(self._server.freeze, self._server.thaw),
            "kill9-and-trimmed-while-cut": lambda: self.cut_off(
                lambda: self._again(self._server.kill), self._some, self._writer.compact
            ),
            "flushdb": self._flush,
            "flushdb-and-grown": lambda: self.cut_off(self._flush, self._grow),
            "log-removed": lambda: self._remove("log"),
            "log-removed-while-cut": lambda: self.cut_off(lambda: self._remove("log"), self._some),
            "restored": self._restore,
            "restored-and-grown": lambda: self.cut_off(self._restore, self._grow),
            "restored-grown-trimmed": lambda: self.cut_off(self._restore, self._grow, self._writer.compact),
            "rights-revoked": self._revoke,
            "renamed-by-others": lambda: self.cut_off(self._rename),
        }

    def heal(self) -> None:
        if self._server.running:
            self._server.thaw()
        else:
            self._server.start()
        self._grant()
        super().heal()

    def _again(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._start()

    def _start(self) -> None:
        self._server.start()
        self._grant()

    def _grant(self) -> None:
        self._try("ACL", "SETUSER", "watched", "on", ">watched", "resetkeys", "~*", "+@all")

    def _revoke(self) -> None:
        """The watching user may not read keys any more, until it may again."""
        how = self.chance.choice((("-@all",), ("resetkeys",), ("off",)))
        self._try("ACL", "SETUSER", "watched", *how)
        if how == ("off",):
            self._try("CLIENT", "KILL", "USER", "watched")
        self.faults.healed.wait(self.chance.uniform(0.1, 1.5))
        self._grant()

    def _remove(self, name: str) -> None:
        """Another program removes one of the store's own keys; the data stays."""
        with self.lock:
            self._ask("DEL", f"datasync:{name}")

    def _rename(self) -> None:
        """Another program takes a key away and puts it back, which is not announced: nothing changes."""
        with self.lock:
            for key in list(self.truth.state)[:3]:
                self._ask("RENAME", self.prefix + key, "elsewhere")
                self._ask("RENAME", "elsewhere", self.prefix + key)

    def _flush(self) -> None:
        with self.lock:
            self._ask("FLUSHDB")
            self._saved = 0
            self._writer.rewound(0)

    def _save(self) -> None:
        self._saved = self._writer.foreign()
        self._server.stop()
        self._server.save("copy")
        self._start()

    def _restore(self) -> None:
        """Put an older copy of all data back; at first, and sometimes later, one that is made just before."""
        if not self._saved or self.chance.random() < 0.3:
            with self.lock:
                self._save()
            for _ in range(self.chance.randint(0, 3)):
                self.write(random_ops(self.chance))
            self.faults.healed.wait(self.chance.uniform(0, 0.3))
        with self.lock:
            self._server.kill()
            self._server.restore("copy")
            self._start()
            self._writer.rewound(self._saved)

    def _grow(self) -> None:
        """Write until the store is beyond every revision that was ever seen."""
        seen = self._writer.highest
        self.write(random_ops(self.chance))
        while self._writer.revision() <= seen and not self.faults.healed.is_set():
            self._foreign()
        self.write(random_ops(self.chance))


class ValkeySource(RedisSource):
    """The same with Valkey."""

    def _program(self) -> Path:
        return find_valkey()
