"""A table of an SQLAlchemy class, or of a Django model, followed by a process of another program."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from datasync.keyval.postgres.table.install import watch_sql
from tests.support.postgres import PostgresServer, find_postgres
from tests.support.running import Running, environment

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


DJANGO = """
import sys
import django
from django.conf import settings

port, url = sys.argv[1:]
server = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": port, "USER": "postgres"}
settings.configure(DATABASES={"default": {**server, "NAME": "postgres"}}, USE_TZ=True)
django.setup()
from django.db import connection, models, transaction
from datasync import connect
from datasync.keyval import PutOp

class Setting(models.Model):
    name = models.TextField(primary_key=True)
    value = models.IntegerField()

    class Meta:
        app_label = "shop"
        db_table = "settings"

def change():
    with transaction.atomic(), connect(url, schema="own") as store:
        Setting.objects.filter(name="limit").update(value=models.F("value") + 2)
        store.commit_in(connection.connection, [PutOp("/settings/saved", b"1")])
    with connect(url, schema="own") as store:
        assert store.read("/settings/saved").value == b"1"

with connection.schema_editor() as editor:
    editor.create_model(Setting)
steps = [Setting(name="limit", value=5).save, change, lambda: Setting.objects.get(name="limit").delete()]
for step in steps:
    print("ready", flush=True)
    input()
    step()
"""


def test_what_a_django_model_saves_reaches_a_worker(server: PostgresServer) -> None:
    pytest.importorskip("django")
    # given a table that a model of Django has made, watched, and a worker
    program = [sys.executable, "-c", DJANGO, str(server.port), server.url]
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as django:
        assert django.stdin
        assert django.stdout
        assert django.stdout.readline() == "ready\n"
        server.sql(watch_sql(("public", "settings"), ["name"]))
        with Running(
            "-m", "datasync.examples.settings_table", f"{server.url}?table=public.settings&key=name"
        ) as worker:
            # when a model is saved, changed in a transaction together with a key of a store, and deleted
            for line in ("limit: new -> 5", "limit: 5 -> 7", "limit: removed"):
                django.stdin.write("\n")
                django.stdin.flush()
                # then the worker has it
                worker.wait_for(line)
            worker.send(signal.SIGTERM)
            assert worker.wait() == 0
        assert django.wait(20) == 0
