"""A PostgreSQL server as the source of cells: killed, frozen, trimmed, restored, locked, cut off by a proxy."""

from __future__ import annotations

import json
import random
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from datasync.errors import StoreError, UnknownOutcome
from datasync.keyval.api import Store
from datasync.keyval.postgres import PostgresConfig, PostgresStore, TableDefinition, TableStore
from datasync.keyval.postgres.table.install import watch_sql
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

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._server = PostgresServer(find_postgres()).start()
        self._proxy = TcpProxy(("127.0.0.1", self._server.port))
        self._plugin: Any = None
        self._large = 0
        self._saved: int | None = None
        self._server.sql(f"CREATE ROLE {READER} LOGIN")

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
                hosts=(("127.0.0.1", self._server.port),),
                database="postgres",
                user="postgres",
                timeout=20.0,
                lock_timeout=10.0,
                history_bytes=bytes_kept,
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


class PostgresTableSource(PostgresFaults):
    """A table of an application, which writes to it with SQL and knows nothing of its readers."""

    _levels: Sequence[psycopg.IsolationLevel] = (
        psycopg.IsolationLevel.READ_COMMITTED,
        psycopg.IsolationLevel.REPEATABLE_READ,
        psycopg.IsolationLevel.SERIALIZABLE,
    )

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._sent = 0
        self._server.sql("CREATE TABLE settings (key text PRIMARY KEY, value text); CREATE TABLE marker (n bigint)")
        self._server.sql("INSERT INTO marker VALUES (0); CREATE TABLE other (key text PRIMARY KEY)")
        for table, key in (("settings", "key"), ("other", "key")):
            self._server.sql(watch_sql(("public", table), [key], roles=[READER]))
        definition = TableDefinition(table="settings", key=("key",), value=("value",))
        self.store: Store = TableStore(definition, self._hasty)

    def write(self, ops: Ops) -> None:
        with self.lock:
            there = self.truth.state
            effect = [
                Op1(key, None if value is None else brief(_json(value)))
                for key, value in ops
                if value is not None or key in there
            ]
            if self._run(lambda client: _upsert(client, ops)) and effect:
                self.truth.record(self._revision(), effect)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "truncated": self._truncate,
            "truncated-while-cut": lambda: self._cut_off(self._truncate),
            "column-added": self._add_column,
            "trigger-disabled": self._disable_trigger,
            "rolled-back": self._roll_back,
            "savepoints": self._use_savepoints,
            "other-table": self._write_other,
        }

    def settle(self) -> None:
        super().settle()
        rows = self._sql("SELECT key, value FROM settings")
        assert {key: brief(_json(value.encode())) for key, value in rows} == dict(self.truth.state), "not the table"

    def history(self) -> Sequence[TruthCommit] | None:
        commits: dict[int, list[Op1]] = {}
        query = (
            "SELECT l.revision, l.key, (l.line -> 'value')::text FROM ds.table_log l JOIN ds.table_watch w USING (tab)"
            " WHERE tab = 'public.settings' AND l.revision > w.oldest ORDER BY l.revision, l.id"
        )
        for revision, key, value in self._sql(query):
            ops = commits.setdefault(revision, [])
            ops.append(Op1(key, None if value is None else brief(value.encode())))
        return [TruthCommit(revision, tuple(ops)) for revision, ops in commits.items()] or None

    def _grants(self) -> str:
        return "ds.table_log, settings"

    def _revision(self) -> int:
        return int(self._sql("SELECT current FROM ds.table_state('public.settings')")[0][0])

    def _run(self, body: Callable[[psycopg.Connection[Any]], object]) -> bool:
        """One transaction of the application, and whether it was committed."""
        self._sent += 1
        try:
            with self._server.client(autocommit=False) as client:
                client.isolation_level = self.chance.choice(self._levels)
                client.execute("UPDATE marker SET n = %s", (self._sent,))
                body(client)
            return True
        except psycopg.Error:
            self.faults.healed.wait(0.01)
            return bool(self._sql("SELECT n FROM marker")[0][0] == self._sent)

    def _truncate(self) -> None:
        with self.lock:
            if self._run(lambda client: client.execute("TRUNCATE settings")):
                self._marked(dict.fromkeys(self.truth.state))

    def _add_column(self) -> None:
        """The value stays as it is, and every reader lists again."""
        self._large += 1
        with self.lock:
            self._run(lambda client: client.execute(f"ALTER TABLE settings ADD COLUMN c{self._large} int DEFAULT 1"))

    def _disable_trigger(self) -> None:
        """Rows change behind the back of the trigger."""
        ops = random_ops(self.chance)

        def scribble(client: psycopg.Connection[Any]) -> None:
            client.execute("ALTER TABLE settings DISABLE TRIGGER zz_datasync")
            _upsert(client, ops)
            client.execute("ALTER TABLE settings ENABLE ALWAYS TRIGGER zz_datasync")

        with self.lock:
            there = self.truth.state
            if self._run(scribble):
                effect = {k: None if v is None else _json(v) for k, v in ops if v is not None or k in there}
                self._marked(effect)

    def _marked(self, effect: dict[str, bytes | None]) -> None:
        """What happened without the trigger is true from the revision on at which a reader, or this, notices it."""
        self._sql("SELECT ds.table_mark('public.settings')")
        ((oldest,),) = self._sql("SELECT oldest FROM ds.table_watch WHERE tab = 'public.settings'")
        if effect:
            self.truth.record(oldest, [Op1(key, None if v is None else brief(v)) for key, v in effect.items()])

    def _roll_back(self) -> None:
        with self.lock:

            def undo(client: psycopg.Connection[Any]) -> None:
                _upsert(client, random_ops(self.chance))
                client.rollback()

            self._run(undo)

    def _use_savepoints(self) -> None:
        ops = random_ops(self.chance, 2)

        def body(client: psycopg.Connection[Any]) -> None:
            _upsert(client, ops[:1])
            client.execute("SAVEPOINT one")
            _upsert(client, random_ops(self.chance))
            client.execute("ROLLBACK TO one")
            _upsert(client, ops[1:])

        with self.lock:
            there = self.truth.state
            effect = [Op1(k, None if v is None else _json(v)) for k, v in ops if v is not None or k in there]
            if self._run(body) and effect:
                self.truth.record(self._revision(), effect)

    def _write_other(self) -> None:
        for number in range(10):
            self._try(lambda: self._server.sql("INSERT INTO other VALUES (%s) ON CONFLICT DO NOTHING", f"k{number}"))  # noqa: B023

    def _trim(self) -> None:
        with self.lock:
            self._sql("SELECT ds.table_trim('public.settings', 0, 1)")


def _upsert(client: psycopg.Connection[Any], ops: Ops) -> None:
    for key, value in ops:
        if value is None:
            client.execute("DELETE FROM settings WHERE key = %s", (key,))
        else:
            client.execute(
                "INSERT INTO settings (key, value) VALUES (%s, %s)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value.decode()),
            )


def _json(value: bytes) -> bytes:
    return json.dumps(value.decode()).encode()
