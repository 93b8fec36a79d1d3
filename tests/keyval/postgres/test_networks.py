"""Encrypted connections, several hosts, and standbys that take over with and without the last commits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import trustme

from datasync.errors import StoreConnectionError, StoreError
from datasync.events import ResyncEvent, ResyncReason
from datasync.keyval import PutOp
from datasync.keyval.postgres import PostgresStore
from datasync.keyval.postgres.table.install import watch_sql
from datasync.kvdbsync import Plugin
from tests.conftest import take, wait_until
from tests.keyval.postgres.conftest import Open
from tests.keyval.postgres.test_versions import committed
from tests.support.postgres import PostgresServer, find_postgres, servant
from tests.support.stores import state


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[PostgresServer, Path]]:
    """A server with a certificate of 127.0.0.1, and the file of its authority."""
    authority = trustme.CA()
    root = tmp_path / "root.pem"
    authority.cert_pem.write_to_path(str(root))
    server = PostgresServer(find_postgres(), ssl="on", ssl_cert_file="server.pem", ssl_key_file="server.key")
    try:
        server.initialise()
        install_certificate(server, authority)
        yield server.start(), root
    finally:
        server.close()


def test_sslmode_verify_full_accepts_the_server_of_its_authority_and_no_other(
    encrypted: tuple[PostgresServer, Path], server: PostgresServer, tmp_path: Path, opened: Open
) -> None:
    secure, root = encrypted
    store = opened(secure.url, sslmode="verify-full", sslrootcert=str(root), application_name="secure")
    store.commit([PutOp("a", b"1")])
    next(batches := iter(store.stream("", 1)))
    rows = secure.sql(
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'secure'"
    )
    assert rows == [(True,)]  # the calls and the stream
    batches.close()  # type: ignore[attr-defined]
    # another name than that of the certificate, another authority, a server without encryption
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    for url, authority, message in (
        (secure.url.replace("127.0.0.1", "localhost"), root, "localhost"),
        (secure.url, stranger, "certificate verify failed"),
        (server.url, root, "does not support SSL"),
    ):
        with pytest.raises(StoreConnectionError, match=message):
            opened(url, sslmode="verify-full", sslrootcert=str(authority)).check()


def install_certificate(server: PostgresServer, authority: trustme.CA) -> None:
    """Give *server* a certificate of 127.0.0.1; it must read its files again."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(server.data / "server.key"))
    certificate.cert_chain_pems[0].write_to_path(str(server.data / "server.pem"))
    for name in ("server.key", "server.pem"):
        (server.data / name).chmod(0o600)
        if owner := servant():
            os.chown(server.data / name, owner["user"], owner["group"])


def test_a_client_certificate_is_shown_and_a_server_whose_certificate_was_replaced_is_followed_further(
    encrypted: tuple[PostgresServer, Path], tmp_path: Path, opened: Open
) -> None:
    # given a server that lets only those in who have a certificate, and tests without encryption
    secure, root = encrypted
    clients, later = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(str(secure.data / "clients.pem"))
    (secure.data / "clients.pem").chmod(0o644)
    hba = "hostnossl all all 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 cert\n"
    (secure.data / "pg_hba.conf").write_text(hba)
    secure.sql("ALTER SYSTEM SET ssl_ca_file = 'clients.pem'")
    secure.sql("SELECT pg_reload_conf()")
    shown = clients.issue_cert("postgres", common_name="postgres")
    files = {"sslcert": tmp_path / "client.pem", "sslkey": tmp_path / "client.key"}
    shown.cert_chain_pems[0].write_to_path(str(files["sslcert"]))
    shown.private_key_pem.write_to_path(str(files["sslkey"]))
    files["sslkey"].chmod(0o600)
    options: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(root)}

    def is_refused() -> bool:  # once the server has read its files again
        try:
            opened(secure.url, **options).check()
        except StoreError as error:
            return "certificate" in str(error)
        return False

    wait_until(is_refused, "a client without a certificate is refused")
    options |= {name: str(path) for name, path in files.items()}
    store = opened(secure.url, application_name="secure", **options)
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        take(queue).done()
        # when the server gets a certificate of another authority, which clients know by then, and ends all connections
        with root.open("ab") as bundle:
            bundle.write(later.cert_pem.bytes())
        install_certificate(secure, later)
        secure.sql("SELECT pg_reload_conf()")
        replaced = tmp_path / "later.pem"
        later.cert_pem.write_to_path(str(replaced))

        def is_replaced() -> bool:
            try:
                opened(secure.url, **{**options, "sslrootcert": str(replaced)}).check()
            except StoreError:
                return False
            return True

        wait_until(is_replaced, "the server shows its new certificate")
        secure.terminate_backends()
        # then the store writes, and the watcher goes on
        wait_until(lambda: committed(store, "a", b"1"), "a commit is acknowledged")
        event = take(queue)
        assert {one.get_key(): one.raw for one in event.get_changes()} == {"a": b"1"}


def pairs(plugin: Plugin) -> dict[str, bytes]:
    """What a subscriber has of the keys of these tests."""
    found = {key: plugin.get(key) for key in ("a", "b", "lost0", "lost1", "lost2")}
    return {key: pair.raw for key, pair in found.items() if pair is not None}


def url_of(*servers: PostgresServer) -> str:
    hosts = ",".join(f"127.0.0.1:{one.port}" for one in servers)
    return f"postgres://postgres@{hosts}/postgres"


def test_c3_of_several_hosts_the_primary_is_found_and_a_standby_takes_over(own: PostgresServer, opened: Open) -> None:
    standby = own.standby()
    try:
        # given a store and a table whose URL names the standby first, and a subscriber of each
        own.sql("CREATE TABLE settings (id text PRIMARY KEY, v int)")
        own.sql(watch_sql(("public", "settings"), ["id"], schema="watched"))
        url = url_of(standby, own)
        store = opened(url, connect_timeout=5.0)
        table = opened(url, connect_timeout=5.0, table="settings", key="id", value="v", schema="watched")
        store.commit([PutOp("a", b"1")])
        with pytest.raises(StoreConnectionError, match="read-only|standby|hot standby"):
            opened(url_of(standby)).check()
        # a reader that says so may list what a standby has
        own.wait_in_sync(standby)
        assert state(opened(url_of(standby), target_session_attrs="any", install=False)) == {"a": b"1"}
        queues: list[Queue[Any]] = [Queue(), Queue()]
        with Plugin(kv=store) as of_store, Plugin(kv=table) as of_table:
            for plugin, queue in zip((of_store, of_table), queues, strict=True):
                plugin.watch("agent", queue, queue)
                take(queue).done()
            # when the primary dies and the standby is promoted / then both go on without a RESYNC
            own.wait_in_sync(standby)
            own.kill()
            standby.promote()
            wait_until(lambda: committed(store, "a", b"2"), "the new primary takes commits")
            standby.sql("INSERT INTO settings VALUES ('a', 1)")
            for queue, value in zip(queues, (b"2", b"1"), strict=True):
                event = take(queue)
                assert not isinstance(event, ResyncEvent)
                assert [change.raw for change in event.get_changes()] == [value]
                event.done()
    finally:
        standby.close()


def test_c3_a_standby_that_is_promoted_without_the_last_commits_is_found_even_when_it_has_grown_past_them(
    own: PostgresServer, opened: Open
) -> None:
    standby = own.standby()
    try:
        own.sql("CREATE TABLE settings (id text PRIMARY KEY, v int)")
        own.sql(watch_sql(("public", "settings"), ["id"], schema="watched"))
        url = url_of(own, standby)
        store = opened(url, connect_timeout=5.0)
        table = opened(url, connect_timeout=5.0, table="settings", key="id", value="v", schema="watched")
        assert isinstance(store, PostgresStore)
        store.commit([PutOp("a", b"1")])
        own.wait_in_sync(standby)
        standby.leave()
        queues: list[Queue[Any]] = [Queue(), Queue()]
        with Plugin(kv=store) as of_store, Plugin(kv=table) as of_table:
            for plugin, queue in zip((of_store, of_table), queues, strict=True):
                plugin.watch("agent", queue, queue)
                take(queue).done()
            # given commits that were delivered, and that the standby does not have
            for number in range(3):
                store.commit([PutOp(f"lost{number}", b"1")])
                own.sql(f"INSERT INTO settings VALUES ('lost{number}', 1)")
            wait_until(lambda: of_store.get("lost2") and of_table.get("lost2"), "all are delivered")
            # when it is promoted, and grows past them before anybody looks
            own.kill()
            standby.promote()
            with PostgresStore(store.config) as writer:
                for number in range(5):
                    writer.commit([PutOp("b", b"%d" % number)])
                    standby.sql(
                        f"INSERT INTO settings VALUES ('b', {number}) ON CONFLICT (id) DO UPDATE SET v = {number}"
                    )
            # then each subscriber is told, and has what there is
            for queue in queues:
                while not isinstance(event := take(queue), ResyncEvent):
                    event.done()
                assert event.reason is ResyncReason.REWOUND
                event.done()
            for plugin, expected in ((of_store, {"a": b"1", "b": b"4"}), (of_table, {"b": b"4"})):
                wait_until(lambda: pairs(plugin) == expected, "the subscriber has what there is")  # noqa: B023
    finally:
        standby.close()


def test_a_full_disk_is_an_error_that_loses_nothing_and_keeps_no_reader_from_reading(opened: Open) -> None:
    server = PostgresServer(find_postgres(), disk=140, max_wal_size="32MB", min_wal_size="32MB")
    try:
        store = opened(server.start().url)
        store.commit([PutOp("a", b"1")])
        server.sql("CREATE TABLE settings (id int PRIMARY KEY, v text)")
        server.sql(watch_sql(("public", "settings"), ["id"], schema="watched"))
        table = opened(server.url, table="settings", key="id", value="v", schema="watched")
        with Plugin(kv=store) as plugin:
            queue: Queue[Any] = Queue()
            plugin.watch("agent", queue, queue)
            take(queue).done()
            # when there is no room
            server.fill_disk()
            with pytest.raises(StoreError, match="short of disk|may have been applied|No space"):
                for number in range(200):
                    store.commit([PutOp(f"k{number}", os.urandom(100_000))])
            # then, as soon as there is some, all that was acknowledged is there, and commits go on
            server.free_disk()
            server.recover()
            wait_until(lambda: committed(store, "a", b"2"), "commits go on")
            found = state(store)
            assert {f"k{n}" for n in range(number)} <= set(found) <= {"a", *(f"k{n}" for n in range(number + 1))}
            wait_until(lambda: (pair := plugin.get("a")) and pair.raw == b"2", "the subscriber has it")
        server.sql("INSERT INTO settings VALUES (1, 'x')")
        assert state(table) == {"1": b'"x"'}
    finally:
        server.close()
