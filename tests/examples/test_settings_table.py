"""A table of an SQLAlchemy class, followed by a process of another program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from datasync.keyval.postgres.table.install import watch_sql
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.running import Running

pytestmark = pytest.mark.postgres


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer(find_postgres()) as server:
        yield server


def test_what_an_orm_and_raw_sql_save_reaches_every_worker(server: PostgresServer) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    base: Any = orm.declarative_base()

    class Setting(base):
        __tablename__ = "settings"
        name = sqlalchemy.Column(sqlalchemy.Text, primary_key=True)
        value = sqlalchemy.Column(sqlalchemy.Integer)

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: server.client(autocommit=False), poolclass=sqlalchemy.pool.NullPool
    )
    # given a table that an ORM has made, watched, and two workers
    base.metadata.create_all(engine)
    server.sql(watch_sql(("public", "settings"), ["name"]))
    url = f"{server.url}?table=public.settings&key=name"
    arguments = ("-m", "datasync.examples.settings_table", url)
    with orm.Session(engine) as session, Running(*arguments) as one, Running(*arguments) as two:
        # when the ORM saves a row, and raw SQL changes and deletes it / then each worker has it
        session.add(Setting(name="limit", value=5))
        session.commit()
        for worker in (one, two):
            worker.wait_for("limit: new -> 5")
        server.sql("UPDATE settings SET value = 7")
        for worker in (one, two):
            worker.wait_for("limit: 5 -> 7")
        session.delete(session.get(Setting, "limit"))
        session.commit()
        for worker in (one, two):
            worker.wait_for("limit: removed")
            worker.send(signal.SIGTERM)
            assert worker.wait() == 0
