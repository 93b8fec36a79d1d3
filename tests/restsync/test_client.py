"""The client: what it sends, what it gives back, and what each answer of a server becomes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
import trustme
from google.protobuf.wrappers_pb2 import StringValue

from datasync import KVProtoWatchers, KVProtoWriters, current_source
from datasync.api import KeyProtoValDeleter, KeyValProtoWatcher
from datasync.errors import (
    AggregateError,
    ClosedError,
    ConflictError,
    DatasyncError,
    DecodeError,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    StoreError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from datasync.restsync import Adapter, Client, Server, serve
from datasync.restsync.client.connection import read_url
from datasync.runtime.http_client.connections import StreamConnection
from datasync.serializer import SerializerProto
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.status import TransportState
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.restsync.support import Http, Subscriber
from tests.support.proxy import free_port
from tests.support.registries import is_resync, plain, removed, state, text, told


def test_it_is_a_writer_a_deleter_and_a_watcher(client: Client) -> None:
    assert isinstance(client, KeyProtoValDeleter)
    assert isinstance(client, KeyValProtoWatcher)


# -- writing and reading


@pytest.mark.parametrize("serializer", [None, SerializerProto()])
def test_a_put_arrives_is_answered_and_can_be_read_back(
    server: Server, subscriber: Subscriber, serializer: Any
) -> None:
    with Client(server.url, serializer=serializer) as client:
        client.put("net/ä b/1", text("up"))
        assert plain(subscriber.changes[0].get_value(StringValue())) == "up"
        pair = client.get("net/ä b/1")
        assert pair is not None
        assert (plain(pair.get_value(StringValue())), pair.get_revision()) == ("up", 1)
        assert client.get("net/none") is None


def test_c17_delete_tells_truly_whether_something_was_deleted(client: Client, subscriber: Subscriber) -> None:
    client.put("net/a", text("x"))
    assert client.delete("net/a")
    assert not client.delete("net/a")


def test_a_list_is_everything_under_a_prefix_in_order_and_of_one_moment(client: Client, subscriber: Subscriber) -> None:
    for name in ("b", "a", "c"):
        client.put(f"net/{name}", text(name))
    listing = client.list("net/")
    assert [pair.get_key() for pair in listing] == ["net/a", "net/b", "net/c"]
    assert (listing.revision, len(listing), plain(listing[1].get_value(StringValue()))) == (3, 3, "b")
    assert list(client.list("nothing")) == []


def test_a_prefix_is_in_front_of_every_key(server: Server, client: Client, subscriber: Subscriber) -> None:
    with Client(server.url, prefix="net/") as inside:
        inside.put("a", text("x"))
        assert client.get("net/a") is not None
        assert [pair.get_key() for pair in inside.list()] == ["a"]
        queue: Queue[Any] = Queue()
        inside.watch("w", queue, queue, "")
        event = take(queue)
        assert state(event) == {"a": "x"}
        event.done()
        inside.delete("a")
        assert told(take(queue)) == [("a", None, "x")]
        with pytest.raises(UnsupportedError, match="prefix"):
            inside.resync({})


def test_c7_a_resync_replaces_the_whole_state(client: Client, subscriber: Subscriber) -> None:
    client.put("net/a", text("x"))
    assert client.resync({"net/b": text("y")}) == 2
    assert removed(subscriber.resyncs[0]) == {"net/a": "x"}
    assert [pair.get_key() for pair in client.list()] == ["net/b"]


def test_a_conditional_put_wins_once(client: Client, subscriber: Subscriber) -> None:
    # given a key that two want to change
    client.put("net/a", text("x"), if_absent=True)
    pair = client.get("net/a")
    assert pair is not None
    # when both try / then the second is told, and nothing of it was applied
    client.put("net/a", text("y"), if_match=pair.etag)
    with pytest.raises(ConflictError):
        client.put("net/a", text("z"), if_match=pair.etag)
    with pytest.raises(ConflictError):
        client.put("net/a", text("z"), if_absent=True)
    with pytest.raises(ConflictError):
        client.delete("net/a", if_match=pair.etag)
    assert len(subscriber.changes) == 2


def test_16_threads_increment_one_key_and_none_gets_lost(client: Client, subscriber: Subscriber) -> None:
    # given a counter
    client.put("net/n", text("0"))

    # when many add to it on condition that nobody else did meanwhile
    def add() -> None:
        for _ in range(5):
            while True:
                pair = client.get("net/n")
                assert pair is not None
                number = int(plain(pair.get_value(StringValue())))
                try:
                    client.put("net/n", text(str(number + 1)), if_match=pair.etag)
                    break
                except ConflictError:
                    continue

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # then every one counted
    pair = client.get("net/n")
    assert pair is not None
    assert plain(pair.get_value(StringValue())) == "40"


# -- errors


def test_c9_a_refusal_is_a_propagation_error_with_its_text(client: Client, subscriber: Subscriber) -> None:
    with pytest.raises(PropagationError) as caught:
        client.put("net/refuse", text("x"))
    assert str(caught.value.errors["agent"]) == "ValueError: not with me"


def test_c9_silence_is_a_done_timeout_that_names_the_silent(adapter: Adapter, subscriber: Subscriber) -> None:
    with serve("127.0.0.1:0", adapter, done_timeout=0.2) as server, Client(server.url) as client:
        with pytest.raises(DoneTimeout) as caught:
            client.put("net/silent", text("x"))
    assert caught.value.silent == ("agent",)
    subscriber.events[-1].done()


def test_a_key_that_nobody_watches_is_a_subscription_error(client: Client) -> None:
    with pytest.raises(SubscriptionError, match="no subscription watches"):
        client.put("net/a", text("x"))


@pytest.mark.parametrize("key", ["", "a/../b", "a\0", "x" * 2000, 7])
def test_c16_a_key_that_cannot_be_is_refused_before_anything_is_sent(key: Any) -> None:
    with Client("http://127.0.0.1:1") as client:
        for act in (lambda: client.put(key, text("x")), lambda: client.delete(key), lambda: client.get(key)):
            with pytest.raises(InvalidArgumentError, match="key"):
                act()


def test_c16_what_cannot_be_honoured_is_refused_before_anything_is_sent() -> None:
    with Client("http://127.0.0.1:1") as client:
        for option in (with_ttl(1), with_client_lifetime_ttl()):
            with pytest.raises(UnsupportedError):
                client.put("a", text("x"), option)
        with pytest.raises(UnsupportedError):
            client.delete("a", with_prefix())
        with pytest.raises(InvalidArgumentError, match="message"):
            client.put("a", None)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="exclude"):
            client.put("a", text("x"), if_match="x", if_absent=True)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://x", "http://", "http://a:b@x", "http://x/?a=b", "http://x:99999", None]
)
def test_c16_an_url_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="URL"):
        Client(url)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"idle_limit": -1}, {"token": "a b"}, {"tls": "/nowhere"}, {"prefix": 7}]
)
def test_c16_an_option_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Client("http://x", **options)
    with pytest.raises(InvalidArgumentError):
        Client("https://x", **options)


def test_a_server_that_is_not_there_is_a_connection_error_and_nothing_was_sent() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        for act in (lambda: client.put("a", text("x")), lambda: client.get("a"), lambda: client.list()):
            with pytest.raises(StoreConnectionError, match="refused"):
                act()


@pytest.fixture
def canned() -> Iterator[Any]:
    """A server that gives one answer to whatever comes, and ends the connection: ``url = canned(answer)``."""
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with listener:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(PATIENT)


def answer(status: int, body: bytes = b"", content_type: str = "text/html", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (502, UnknownOutcome),  # a proxy's: what is behind it may have got the request
        (504, UnknownOutcome),
        (500, UnknownOutcome),
        (503, UnknownOutcome),
        (401, PermissionDenied),
        (403, PermissionDenied),
        (404, StoreError),
        (413, InvalidArgumentError),
        (302, StoreError),
        (418, StoreError),
    ],
)
def test_c17_an_answer_that_is_not_of_our_server_is_taken_with_care(
    canned: Any, status: int, kind: type[DatasyncError]
) -> None:
    with Client(canned(answer(status, b"<h1>proxy</h1>", extra="Location: http://127.0.0.1:1/\r\n"))) as client:
        with pytest.raises(kind):
            client.put("a", text("x"))


@pytest.mark.parametrize(
    "text_of_it", [b"", b"HTTP/1.1 200", b"HTTP/1.1 201 X\r\nContent-Length: 10\r\n\r\nhalf", b"junk\r\n\r\n"]
)
def test_c17_a_put_whose_answer_never_comes_is_an_unknown_outcome(canned: Any, text_of_it: bytes) -> None:
    with Client(canned(text_of_it)) as client:
        with pytest.raises(UnknownOutcome, match="put of 'a'"):
            client.put("a", text("secret"))


def test_a_get_whose_answer_never_comes_is_a_connection_error(canned: Any) -> None:
    with Client(canned(b"")) as client:
        with pytest.raises(StoreConnectionError):
            client.get("a")


@pytest.mark.parametrize(
    "body",
    [b"event: items\ndata: secret\n\n", b"event: synced\ndata: {}\n\n", b"event: items\ndata: [7]\n\n", b"\xff\n\n"],
    ids=["no json", "no revision", "no item", "no utf-8"],
)
def test_a_list_of_another_kind_of_server_is_an_error_of_the_house_without_its_text(canned: Any, body: bytes) -> None:
    with Client(canned(answer(200, body, "text/event-stream"))) as client:
        with pytest.raises(StoreError, match="not from a datasync server") as caught:
            client.list()
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_page_of_another_kind_of_server_is_not_taken_for_a_value(canned: Any) -> None:
    with Client(canned(answer(200, b"<h1>please log in</h1>", extra='ETag: "abc"\r\n'))) as client:
        with pytest.raises(StoreError, match="not from a datasync server"):
            client.get("a")


def test_a_tag_that_a_proxy_made_weak_is_the_servers_own_again(canned: Any) -> None:
    with Client(canned(answer(200, b'"x"', "application/json", 'ETag: W/"0a1b2c3d-7"\r\n'))) as client:
        pair = client.get("a")
        assert pair is not None
        assert (pair.etag, pair.get_revision()) == ("0a1b2c3d-7", 7)


def test_a_closed_client_says_so(server: Server) -> None:
    client = Client(server.url)
    client.close()
    client.close()
    for act in (lambda: client.put("a", text("x")), lambda: client.get("a")):
        with pytest.raises(ClosedError):
            act()
    with pytest.raises(ClosedError):
        client.watch("w", Queue(), None, "")


# -- tokens and TLS


def test_a_wrong_token_is_permission_denied_for_writes_reads_and_watches(adapter: Adapter) -> None:
    right, wrong = f"{CANARY}-right", f"{CANARY}-wrong"
    with serve("127.0.0.1:0", adapter, token=right) as server, Client(server.url, token=wrong) as client:
        for act in (lambda: client.put("a", text("x")), lambda: client.get("a"), lambda: client.list()):
            with pytest.raises(PermissionDenied):
                act()
        client.watch("w", Queue(), None, "")
        with pytest.raises(NotReadyError) as caught:
            client.wait_ready(0.5)
        assert isinstance(caught.value.__cause__, PermissionDenied)


def test_everything_works_over_tls_with_a_token(adapter: Adapter, subscriber: Subscriber, tmp_path: Any) -> None:
    # given a server with a certificate in files
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    with serve("127.0.0.1:0", adapter, tls=files, token=CANARY) as server:
        # when a client trusts its authority
        with Client(server.url, tls=tmp_path / "ca.pem", token=CANARY) as client:
            queue: Queue[Any] = Queue()
            client.watch("w", queue, queue, "net/")
            take(queue).done()
            client.put("net/a", text("x"))
            # then both ways work
            event = take(queue)
            assert told(event) == [("net/a", "x", None)]
            event.done()
        # and one that does not is told why, before anything was sent
        with Client(server.url, token=CANARY) as stranger:
            with pytest.raises(StoreConnectionError, match="certificate is not valid"):
                stranger.put("net/a", text("x"))
            stranger.watch("w", queue, queue, "net/")
            with pytest.raises(NotReadyError, match="certificate is not valid"):
                stranger.wait_ready(0.5)


@pytest.mark.parametrize("size", [4, 64])
def test_a_value_above_the_servers_limit_is_refused_by_name_however_large(client: Client, size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="the body has more than 4194304 bytes"):
        client.put("net/a", text("x" * size * 1024 * 1024))


def test_c16_tls_for_plain_http_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="https"):
        Client("http://x", tls=ssl.create_default_context())


# -- watching


def test_c2_c6_a_watch_is_a_resync_and_then_changes_with_the_value_before(
    client: Client, subscriber: Subscriber
) -> None:
    # given a key
    client.put("net/a", text("1"))
    queue: Queue[Any] = Queue()
    # when it is watched, changed and deleted
    client.watch("w", queue, queue, "net/")
    first = take(queue)
    assert (state(first), first.reason.value) == ({"net/a": "1"}, "initial")
    assert first.get_context().run(current_source.get) == client.status().name
    first.done()
    client.put("net/a", text("2"))
    client.delete("net/a")
    # then each comes with what was before
    for expected in ([("net/a", "2", "1")], [("net/a", None, "2")]):
        event = take(queue)
        assert told(event) == expected
        event.done()
    assert client.status().state is TransportState.READY


def test_values_in_both_forms_are_read_by_one_watcher(server: Server, client: Client, subscriber: Subscriber) -> None:
    with Client(server.url, serializer=SerializerProto()) as binary:
        binary.put("net/a", text("binary"))
        client.put("net/b", text("json"))
        for one in (binary, client):
            queue: Queue[Any] = Queue()
            one.watch("w", queue, queue, "net/")
            event = take(queue)
            assert state(event) == {"net/a": "binary", "net/b": "json"}
            event.done()


def test_c16_half_a_surrogate_pair_in_a_value_stops_neither_lists_nor_watches(
    client: Client, http: Http, subscriber: Subscriber
) -> None:
    # given a value that is JSON, and cannot be written as UTF-8
    assert http.put("net/a", "\ud800").status == 201
    client.put("net/b", text("good"))
    # when it is listed and watched
    assert [pair.get_key() for pair in client.list()] == ["net/a", "net/b"]
    queue: Queue[Any] = Queue()
    client.watch("w", queue, queue, "net/")
    event = take(queue)
    # then it comes with its key beside the others, and only reading it fails
    (found,) = event.get_values().values()
    pairs = {pair.get_key(): pair for pair in found}
    assert plain(pairs["net/b"].get_value(StringValue())) == "good"
    with pytest.raises(DecodeError):
        pairs["net/a"].get_value(StringValue())
    event.done()
    # and what comes after it arrives too
    http.put("net/a", "\udfff")
    assert [change.get_key() for change in take(queue).get_changes()] == ["net/a"]


def test_c11_a_prefix_that_is_registered_later_gets_its_own_resync(client: Client, subscriber: Subscriber) -> None:
    client.put("net/a", text("1"))
    queue: Queue[Any] = Queue()
    registration = client.watch("w", queue, queue, "other/")
    take(queue).done()
    registration.register("w", "net/")
    event = take(queue)
    assert (event.reason.value, state(event)) == ("prefix", {"net/a": "1"})
    event.done()


def test_a_full_state_on_the_server_is_a_resync_with_what_is_gone(client: Client, subscriber: Subscriber) -> None:
    client.put("net/a", text("1"))
    queue: Queue[Any] = Queue()
    client.watch("w", queue, queue, "net/")
    take(queue).done()
    client.resync({"net/b": text("2")})
    event = take(queue)
    assert is_resync(event)
    assert (state(event), removed(event), event.reason.value) == ({"net/b": "2"}, {"net/a": "1"}, "requested")
    event.done()


def test_c12_it_works_in_aggregates(server: Server, client: Client, subscriber: Subscriber) -> None:
    # given two clients as one writer and one watcher
    with Client(server.url, prefix="net/") as second:
        writers = KVProtoWriters(client, second)
        with pytest.raises(AggregateError) as caught:
            writers.put("a", text("x"))
        assert [type(error) for error in caught.value.errors] == [SubscriptionError]
        assert writers.delete("a") is True
        # when both are watched / then each sends its own RESYNC
        queue: Queue[Any] = Queue()
        registration = KVProtoWatchers(client, second).watch("w", queue, queue, "")
        events = [take(queue), take(queue)]
        for event in events:
            assert is_resync(event)
            event.done()
        registration.close()


def test_c15_a_client_that_never_watched_has_no_thread(server: Server) -> None:
    before = threading.active_count()
    with Client(server.url) as client:
        client.get("a")
        assert sum(thread.name.startswith("datasync-restsync-reader") for thread in threading.enumerate()) == 0
        client.watch("w", Queue(), None, "")
        wait_until(lambda: client.status().state is TransportState.READY, "it is ready")
        assert sum(thread.name.startswith("datasync-restsync-reader") for thread in threading.enumerate()) == 1
    wait_until(lambda: threading.active_count() <= before, "its threads are gone")


def test_c15_close_is_prompt_while_a_connection_hangs(server: Server) -> None:
    # given an address that swallows what is sent to it
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        client.watch("w", Queue(), None, "")
        # when the client is closed while it waits for an answer / then its thread has ended
        wait_until(lambda: client._reader._connection is not None, "it is connecting")
        client.close()
        assert not client._reader._worker.alive


def test_c15_who_is_cut_while_the_connection_comes_up_does_not_wait_for_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a cut that comes when the connection stands, and before it can be found
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = StreamConnection(read_url(f"http://127.0.0.1:{listener.getsockname()[1]}"), None, 5.0, 5.0)
        keep = link._keep

        def cut_first(sock: socket.socket) -> socket.socket:
            link.cut()
            return keep(sock)

        monkeypatch.setattr(link, "_keep", cut_first)
        # when it is opened / then nothing is asked, and nothing waited for
        with pytest.raises(ClosedError):
            link.open("/events", {})
        link.close()
        peer, _ = listener.accept()
        peer.settimeout(5)
        assert peer.recv(100) == b""
        peer.close()


def test_c6_revisions_may_be_times_in_nanoseconds(adapter: Adapter, client: Client) -> None:
    # given a source whose revisions have 19 digits
    revision = 1_790_000_000_123_456_789
    adapter.registry.submit_changes({"k": ChangeBytes("k", b"1", revision=revision)})
    # when a client reads and watches
    pair = client.get("k")
    queue: Queue[Any] = Queue()
    client.watch("agent", queue, queue, "")
    # then it gets them
    assert pair is not None
    assert pair.get_revision() == revision
    event = take(queue)
    assert event.revision == revision
    event.done()
