"""An application's own table in a PostgreSQL server as the source of cells."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from datasync.keyval.api import Store
from datasync.keyval.postgres import TableDefinition, TableStore
from datasync.keyval.postgres.table.install import watch_sql
from tests.faults.history import Op1, TruthCommit, brief
from tests.faults.sources.postgres import READER, PostgresFaults
from tests.faults.sources.source import Misfortune, Ops, random_ops


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
            "lock-held": self._hold_locks,
            "table-locked": self._lock_table,
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

    def _hold_locks(self) -> None:
        """A transaction waits after its trigger has run, with the lock of all commits, and is rolled back or not."""
        ops = random_ops(self.chance, 2)
        commits = self.chance.random() < 0.5

        def body(client: psycopg.Connection[Any]) -> None:
            _upsert(client, ops)
            client.execute("SET CONSTRAINTS ALL IMMEDIATE")
            self.faults.healed.wait(self.chance.uniform(0, 1.0))
            if not commits:
                client.rollback()

        with self.lock:
            there = self.truth.state
            effect = [Op1(k, None if v is None else _json(v)) for k, v in ops if v is not None or k in there]
            if self._run(body) and commits and effect:
                self.truth.record(self._revision(), effect)

    def _lock_table(self) -> None:
        """Some program, such as a backup or a migration, keeps everybody from the table."""
        with self.lock:
            self._run(
                lambda client: (
                    client.execute("LOCK TABLE settings IN ACCESS EXCLUSIVE MODE"),
                    self.faults.healed.wait(self.chance.uniform(0, 1.5)),
                )
            )

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
