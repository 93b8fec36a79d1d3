"""A PostgreSQL server as the source of cells: killed, frozen, trimmed, restored, locked, cut off by a proxy."""

from __future__ import annotations

import random
import signal
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import psycopg

from datasync.errors import StoreError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.postgres import PostgresConfig, PostgresStore
from datasync.keyval.types import DeleteOp, PutOp, WriteOp
from datasync.syncbase.status import TransportState
from tests.faults.history import Op1, Silence, TruthCommit, brief
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.proxy import TcpProxy

#: Seconds that the watched store waits for a response, and that detection may take beyond its idle limit.
TIMEOUT, GRACE = 1.0, 1.0
#: The role of the watched store, whose rights are taken away.
READER = "reader"
#: Keys of a transaction that is larger than a page of the log.
MANY = 2500


class PostgresFaults(Source):
    """The watched store connects through a proxy, the writer directly."""

    pace = 0.06
    transactions = 80
    #: False behind a pooler.
    _prepare = True

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._server = self._new_server().start()
        self._proxy = TcpProxy(("127.0.0.1", self._server.port))
        self._plugin: Any = None
        self._large = 0
        self._saved: int | None = None
        self._server.sql(f"CREATE ROLE {READER} LOGIN")

    def _new_server(self) -> PostgresServer:
        return PostgresServer(find_postgres())

    @property
    def _hosts(self) -> tuple[tuple[str, int | None], ...]:
        """Where the writer finds the server."""
        return (("127.0.0.1", self._server.port),)

    @abstractmethod
    def _grants(self) -> str:
        """The tables that the watched store reads."""

    @abstractmethod
    def _revision(self) -> int:
        """The revision of the last commit."""

    def transport(self) -> Any:
        self._plugin = super().transport()
        return self._plugin

    @property
    def server_watchers(self) -> int | None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND query LIKE %s"
        return int(self._server.sql(query, READER, "%LATERAL%")[0][0])

    def misfortunes(self) -> dict[str, Misfortune]:
        chance, proxy, server = self.chance, self._proxy, self._server
        return {
            "reset": proxy.reset,
            "drop": proxy.drop,
            "reset-mid-message": lambda: self._for_a_while(lambda: proxy.reset_after(chance.randint(1, 3000))),
            "cut": self._cut_off,
            "black-hole": lambda: self._unheard(lambda: proxy.black_hole(up=True, down=True), proxy.heal),
            "black-hole-up": lambda: self._unheard(lambda: proxy.black_hole(up=True, down=False), proxy.heal),
            "black-hole-down": lambda: self._unheard(lambda: proxy.black_hole(up=False, down=True), proxy.heal),
            "stall": lambda: self._unheard(proxy.freeze, proxy.heal),
            "delay": lambda: self._for_a_while(lambda: proxy.delay(chance.uniform(0.01, 0.1))),
            "rate": lambda: self._for_a_while(lambda: proxy.rate(chance.randint(5_000, 50_000))),
            "sigstop": lambda: self._unheard(server.freeze, server.thaw),
            "kill9": lambda: self._again(server.kill),
            "stop-immediate": lambda: self._again(lambda: server.stop(signal.SIGQUIT)),
            "stop-fast": lambda: self._again(server.stop),
            "backends-kill9": lambda: self._try(server.kill_backends),
            "backends-terminated": lambda: self._try(server.terminate_backends),
            "rights-taken": self._take_rights,
            "long-transaction": self._stay_in_transaction,
            "trimmed": self._trim,
            "trimmed-while-cut": lambda: self._cut_off(self._grow, self._trim),
            "copied": self._save,
            "restored": self._restore,
            "restored-and-grown": lambda: self._cut_off(self._restore, self._outgrow),
            "big-transaction": lambda: self.write(self._many()),
            "big-value": self._write_large,
        }

    def heal(self) -> None:
        super().heal()
        self._server.thaw()
        self._proxy.heal()

    def settle(self) -> None:
        self.store.close()

    def close(self) -> None:
        self.store.close()
        self._proxy.close()
        self._server.close()

    @property
    def _hasty(self) -> PostgresConfig:
        """The settings of the watched store."""
        return PostgresConfig(
            hosts=(("127.0.0.1", int(self._proxy.address.rpartition(":")[2])),),
            database="postgres",
            user=READER,
            timeout=TIMEOUT,
            lock_timeout=0.5,
            connect_timeout=0.5,
            poll_interval=0.5,
            install=False,
            prepare=self._prepare,
        )

    # The connection.

    def _for_a_while(self, begin: Misfortune) -> None:
        begin()
        self.faults.healed.wait(self.chance.uniform(0.05, 1.0))
        self._proxy.heal()

    def _cut_off(self, *meanwhile: Misfortune) -> None:
        self._proxy.refuse()
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.05))
        self._proxy.heal()

    def _unheard(self, begin: Misfortune, end: Misfortune) -> None:
        """Make the connection half-open from *begin* to *end*: until that was detected, or for a shorter time."""
        limit = self.store.idle_limit + GRACE
        before = self._plugin.status()
        began = time.monotonic()
        begin()
        try:
            if before.state is not TransportState.READY or self.chance.random() < 0.3:
                self.faults.healed.wait(self.chance.uniform(0, 1.3 * limit))
                return
            while (now := time.monotonic()) < began + limit + 0.5 and not self.faults.healed.is_set():
                status = self._plugin.status()
                if status.state is not TransportState.READY or status.reconnects > before.reconnects:
                    self.course.silences.append(Silence(began, now, limit))
                    return
                # A hole in one direction passes data that needs no response: the connection is not silent yet.
                began = max(began, now - (status.silence or 0.0))
                self.faults.healed.wait(0.01)
            self.course.silences.append(Silence(began, None, limit, time.monotonic()))
        finally:
            end()

    # The server.

    def _try(self, happens: Misfortune) -> None:
        try:
            happens()
        except psycopg.Error:  # it ends us as well
            self.faults.healed.wait(0.05)

    def _again(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.choice((0, self.chance.uniform(0, 0.5))))
        self._server.start()

    def _take_rights(self) -> None:
        self._sql(f"REVOKE SELECT ON {self._grants()} FROM {READER}")
        self.faults.healed.wait(self.chance.uniform(0.05, 0.6))
        self._sql(f"GRANT SELECT ON {self._grants()} TO {READER}")

    def _stay_in_transaction(self) -> None:
        """Some program keeps a snapshot: nothing may wait for it."""
        with self._server.client(autocommit=False) as client:
            client.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            client.execute("SELECT count(*) FROM pg_class")
            self._grow()
            self.faults.healed.wait(self.chance.uniform(0, 0.5))

    @abstractmethod
    def _trim(self) -> None:
        """Forget the history up to now."""

    def _sql(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement of the harness, again until the server is there."""
        until = time.monotonic() + 30
        while True:
            try:
                return self._server.sql(query, *parameters)
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _save(self) -> None:
        with self.lock:
            self._saved = self._revision()
            self._server.stop()
            self._server.save("copy")
            self._server.start()

    def _restore(self) -> None:
        if self._saved is None or self.chance.random() < 0.5:
            self._save()
            self._grow()
        assert self._saved is not None
        with self.lock:
            self._server.stop(signal.SIGQUIT)
            self._server.restore("copy")
            self._server.start()
            self.truth.rewind(self._saved)

    def _grow(self) -> None:
        for _ in range(3):
            self.write(random_ops(self.chance))

    def _outgrow(self) -> None:
        """Write until the store is beyond every revision that was ever seen."""
        seen = max((c.revision for e in self.truth.epochs for c in e.commits), default=0)
        while self._revision() <= seen and not self.faults.healed.is_set():
            self.write(random_ops(self.chance))

    def _many(self) -> Ops:
        self._large += 1
        return [(f"b/many/{n}", b"m%d-%d" % (self._large, n) if self._large % 2 else None) for n in range(MANY)]

    def _write_large(self) -> None:
        self._large += 1
        self.write([("a/large", (b"large %d " % self._large).ljust(3_000_000, b"."))])
        self.write([("a/large", None)])


class PostgresSource(PostgresFaults):
    """A store in a schema of its own. What the log table says in the end is compared with the writer's record."""

    prefix = "/h/"

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        bytes_kept = chance.choice((1 << 26, 20_000))  # with the latter the log is trimmed all the time
        self._writer = PostgresStore(
            PostgresConfig(
                hosts=self._hosts,
                database="postgres",
                user="postgres",
                timeout=20.0,
                lock_timeout=10.0,
                history_bytes=bytes_kept,
                prepare=self._prepare,
            )
        )
        self._writer.check()
        self._sql(f"GRANT USAGE ON SCHEMA ds TO {READER}; GRANT SELECT ON ALL TABLES IN SCHEMA ds TO {READER}")
        self.store: Store = PostgresStore(self._hasty)

    def write(self, ops: Ops) -> None:
        with self.lock:
            there = self.truth.state
            sent: list[WriteOp] = [
                DeleteOp(self.prefix + key) if value is None else PutOp(self.prefix + key, value) for key, value in ops
            ]
            effect = [
                Op1(key, None if value is None else brief(value))
                for key, value in ops
                if value is not None or key in there
            ]
            revision = self._send(sent)
            if revision is not None and effect:
                self.truth.record(revision, effect)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "wiped": self._wipe,
            "wiped-while-cut": lambda: self._cut_off(self._wipe),
            "lock-held": self._hold_lock,
            "second-writer": self._write_as_well,
            "foreign-writer": self._scribble,
        }

    def settle(self) -> None:
        super().settle()
        rows = self._sql("SELECT key, value FROM ds.kv")
        found = {bytes(key).decode(): brief(bytes(value)) for key, value in rows if bytes(key).startswith(b"/h/")}
        assert {key[3:]: value for key, value in found.items()} == dict(self.truth.state), "the record is not the table"

    def history(self) -> Sequence[TruthCommit] | None:
        commits: dict[int, list[Op1]] = {}
        for revision, key, value in self._sql("SELECT revision, key, value FROM ds.log ORDER BY revision, place, key"):
            text = bytes(key).decode()
            if text.startswith(self.prefix):
                ops = commits.setdefault(revision, [])
                ops.append(Op1(text[len(self.prefix) :], None if value is None else brief(bytes(value))))
        return [TruthCommit(revision, tuple(ops)) for revision, ops in commits.items()] or None

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _grants(self) -> str:
        return "ds.head, ds.log"

    def _revision(self) -> int:
        return int(self._sql("SELECT revision FROM ds.head")[0][0])

    def _send(self, ops: Sequence[WriteOp], store: PostgresStore | None = None) -> int | None:
        """The revision of a commit, or None if it did not happen: the store settles what is not known."""
        try:
            return (store or self._writer).commit(ops).revision
        except UnknownOutcome as error:
            token = error.token
        except StoreError:
            self.faults.healed.wait(0.01)
            return None
        return self._settled(token)

    def _settled(self, token: str) -> int | None:
        until = time.monotonic() + 30
        while True:
            try:
                applied = self._writer.committed(token)
                break
            except StoreError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        return int(self._sql("SELECT revision FROM ds.commit WHERE token = %s", token)[0][0]) if applied else None

    def _trim(self) -> None:
        with self.lock:
            self._sql("SELECT ds.compact(NULL)")

    def _wipe(self) -> None:
        with self.lock:
            self._sql("TRUNCATE ds.kv, ds.log, ds.lease, ds.commit")
            self._sql("UPDATE ds.head SET revision = 1, oldest = 1, bytes = 0, epoch = gen_random_uuid()")
            self._saved = None
            self.truth.rewind(1)

    def _hold_lock(self) -> None:
        """An application stays in the transaction in which it commits keys, and commits or rolls back."""
        with self.lock:
            key, value = random_ops(self.chance, 1)[0]
            value = value or b"held"
            try:
                with self._server.client(autocommit=False) as client:
                    result = self._writer.commit_in(client, [PutOp(self.prefix + key, value)])
                    self.faults.healed.wait(self.chance.uniform(0, 1.0))
                    if self.chance.random() < 0.5:
                        client.rollback()
                        return
            except (psycopg.Error, StoreError):
                return  # nothing else happens to the server meanwhile, unless this cell has every fault
            self.truth.record(result.revision, [Op1(key, brief(value))])

    def _write_as_well(self) -> None:
        with PostgresStore(self._writer.config) as second:
            for _ in range(3):
                self._other(second)

    def _other(self, second: PostgresStore) -> None:
        with self.lock:
            ops = random_ops(self.chance, 2)
            there = self.truth.state
            sent: list[WriteOp] = [
                DeleteOp(self.prefix + key) if value is None else PutOp(self.prefix + key, value) for key, value in ops
            ]
            effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
            revision = self._send(sent, second)
            if revision is not None and effect:
                self.truth.record(revision, effect)

    def _scribble(self) -> None:
        """Somebody writes beside the watched prefix, at the same time."""
        with PostgresStore(self._writer.config) as second:
            for number in range(self.chance.choice((1, 20, 100))):
                try:
                    second.commit([PutOp("foreign", b"%d" % number)])
                except StoreError:
                    return
