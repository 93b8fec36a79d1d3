"""Large things, and what is left after close and fork: C15, I16; D50, D56, D60, D65, D68."""

from __future__ import annotations

import os
import threading
from queue import Queue
from typing import Any

import pytest

from datasync.errors import ClosedError, CompactedError, ForkedError, InvalidArgumentError
from datasync.keyval.etcd.scan import PAGE_BYTES, EtcdScan
from datasync.keyval.types import DeleteOp, PutOp
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.threads import Worker
from tests.conftest import take, wait_until
from tests.keyval.etcd.conftest import OpenStore
from tests.support.grpc_calls import all_calls_freed
from tests.support.servers import EtcdServer
from tests.support.stores import following, state

pytestmark = pytest.mark.etcd

MIB = 1 << 20


def test_d56_deletes_tell_how_many_keys_there_were(calm: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(calm.endpoint)
    store.commit([PutOp(f"p/{number}", b"") for number in range(5)])
    assert store.commit([DeleteOp("p/0")]).deleted == 1
    assert store.commit([DeleteOp("p/0")]).deleted == 0
    assert store.commit([DeleteOp("p/", prefix=True), DeleteOp("q")]).deleted == 4


def test_a_scan_of_many_pages_is_one_revision(calm: EtcdServer, open_store: OpenStore) -> None:
    # given more keys than several pages hold
    store = open_store(calm.endpoint, page_size=500)
    expected = {}
    for start in range(0, 3000, 100):
        pairs = {f"p/{number:05}": b"%d" % number for number in range(start, start + 100)}
        store.commit([PutOp(key, value) for key, value in pairs.items()])
        expected.update(pairs)
    scan = store.scan("p/")
    pairs = iter(scan)
    first = next(pairs)
    # when keys come, change and go between the pages
    store.commit([PutOp("p/00007x", b""), PutOp("p/02000", b"new"), DeleteOp("p/02500"), PutOp("p/09999", b"")])
    # then all pairs are those of the first page's revision, in order
    found = [first, *pairs]
    assert {pair.key: pair.value for pair in found} == expected
    assert [pair.key for pair in found] == sorted(expected)
    assert all(pair.revision <= scan.revision for pair in found)
    assert [pair.value for pair in store.scan("p/0000", keys_only=True)] == [b""] * 11


def test_pages_of_large_values_are_small(calm34: EtcdServer, open_store: OpenStore) -> None:
    # given values of which a page by number of keys would be 200 MiB
    store = open_store(calm34.endpoint)
    for number in range(150):
        store.commit([PutOp(f"p/{number:03}", b"x" * (MIB // 2))])
    sizes = [len(pair.value) for pair in store.scan("p/")]
    assert sizes == [MIB // 2] * 150


def test_pages_become_small_where_large_values_begin(
    calm34: EtcdServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given large values behind small ones, and how large the pages of a scan are
    store = open_store(calm34.endpoint, page_size=300)
    for start in range(0, 1200, 100):
        store.commit([PutOp(f"p/a/{number:04}", b"x") for number in range(start, start + 100)])
    for number in range(700):
        store.commit([PutOp(f"p/b/{number:04}", b"x" * 50_000)])
    sizes = []
    original = EtcdScan._page

    def page(*args: Any) -> Any:
        answer = original(*args)
        sizes.append(answer.ByteSize())
        return answer

    monkeypatch.setattr(EtcdScan, "_page", page)
    # when it is listed
    assert len(list(store.scan("p/"))) == 1900
    # then those that come where small ones still count are larger than wanted, and none is as large as 300 of them
    assert 2 * PAGE_BYTES < max(sizes) < 3 * PAGE_BYTES
    assert sum(size > 1.5 * PAGE_BYTES for size in sizes) == 2


def test_a_value_of_the_server_s_limit_is_kept_and_one_above_is_refused(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(calm.endpoint)
    largest = os.urandom(int(1.5 * MIB) - 512)
    with following(store, "p/", store.revision()) as follower:
        last = store.commit([PutOp("p/large", largest)]).revision
        (batch,) = [batch for batch in follower.until(last) if batch.commits]
    assert batch.commits[0].ops == [("p/large", largest)]
    assert state(store, "p/") == {"p/large": largest}
    for size in (int(1.5 * MIB) + 1, 5 * MIB):
        with pytest.raises(InvalidArgumentError, match=r"'p/more'.*--max-request-bytes"):
            store.commit([PutOp("p/more", b"x" * size)])
    assert set(state(store, "p/")) == {"p/large"}


def test_d65_128_operations_are_a_transaction_and_129_are_refused_whole(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(calm.endpoint)
    ops = [PutOp(f"p/{number:03}", b"") for number in range(129)]
    revision = store.commit(ops[:128]).revision
    with pytest.raises(InvalidArgumentError, match="--max-txn-ops"):
        store.commit([PutOp(op.key, b"new") for op in ops])
    assert store.revision() == revision
    with following(store, "p/", revision - 1) as follower:
        assert len(follower.until(revision)[-1].commits[0].ops) == 128


def test_d65_a_key_twice_is_refused_before_anything_is_sent(calm34: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(calm34.endpoint)
    before = store.revision()
    with pytest.raises(InvalidArgumentError, match="'a' occurs twice"):
        store.commit([PutOp("a", b""), DeleteOp("a")])
    assert store.revision() == before


@pytest.mark.parametrize("in_fragments", [False, True])
def test_a_transaction_larger_than_a_message_is_whole(
    calm: EtcdServer, open_store: OpenStore, in_fragments: bool
) -> None:
    # given a history of more than a message; its fragments end within transactions: 4 values of 300 KiB to each
    store = open_store(calm.endpoint)
    if in_fragments:
        store._in_fragments.add("p/")
    start = store.revision()
    for number in range(8):
        store.commit([PutOp(f"p/{number}/{part}", os.urandom(300 * 1024)) for part in range(4)])
    last = store.commit([DeleteOp("p/", prefix=True)]).revision
    # when it is streamed from the beginning
    with following(store, "p/", start) as follower:
        batches = follower.until(last)
    # then each transaction is one commit, once
    commits = [commit for batch in batches for commit in batch.commits]
    assert [commit.revision for commit in commits] == list(range(start + 1, last + 1))
    assert [len(commit.ops) for commit in commits] == [4] * 8 + [32]


def test_a_backlog_of_very_many_small_events_is_not_cut_for_its_silence(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    # given a backlog of which the server would take minutes to cut fragments
    store = open_store(calm.endpoint)
    start = store.revision()
    for number in range(500):
        last = store.commit([PutOp(f"p/{number}/{part}", b"1") for part in range(128)]).revision
    # then it comes from one stream, within the usual idle limit
    with following(store, "p/", start) as follower:
        assert sum(len(commit.ops) for batch in follower.until(last) for commit in batch.commits) == 64_000


def test_compacting_twice_and_the_future_are_told_apart(calm: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(calm.endpoint)
    store.commit([PutOp("a", b"")])
    last = store.commit([PutOp("a", b"")]).revision
    assert store.compact() == store.compact() == last
    with pytest.raises(CompactedError):
        store.compact(last - 1)
    with pytest.raises(InvalidArgumentError, match=str(last + 100)):
        store.compact(last + 100)


def test_d68_auto_compact_goes_on_when_nothing_changes(server34: EtcdServer, open_store: OpenStore) -> None:
    # given a store that compacts by itself, and is idle
    store = open_store(server34.endpoint, auto_compact=0.05)
    position = store.commit([PutOp("p/1", b"")]).revision
    store.commit([PutOp("p/1", b"")])
    last = store.commit([PutOp("p/1", b"")]).revision

    def compacted() -> bool:
        with following(store, "p/", position) as follower:
            return any(isinstance(take(follower.queue), CompactedError) for _ in range(2))

    wait_until(compacted, "the history is compacted")
    # then it is still at it for what comes later
    position = store.commit([PutOp("p/1", b"")]).revision
    store.commit([PutOp("p/1", b"")])
    store.commit([PutOp("p/1", b"")])
    assert position > last
    wait_until(compacted, "the later history is compacted too")


def test_d60_close_leaves_nothing_running_here_or_at_the_server(calm: EtcdServer, open_store: OpenStore) -> None:
    # given stores with all that a store can have open
    def watchers() -> float:
        return calm.metric("etcd_debugging_mvcc_watcher_total")

    open_store(calm.endpoint).check()  # what grpc opens once for the whole process
    before = (set(threading.enumerate()), len(os.listdir("/proc/self/fd")), watchers())
    for _ in range(5):
        store = open_store(calm.endpoint, session_ttl=60)
        store.commit([PutOp("p/life", b"", client_lifetime=True)])
        leadership = store.campaign("election", timeout=5)
        with following(store, "p/", store.revision()) as follower:
            wait_until(lambda: not follower.queue.empty(), "the stream is connected")
            assert watchers() > before[2]
            # when one is closed with a stream still open
            store.close()
            # then the stream ends with that word
            assert isinstance(follower.ending(), ClosedError)
        leadership.resign()
        assert state(open_store(calm.endpoint), "p/") == {}
        calm.ctl("del", "--prefix", "election/")
    # then there are as many threads, descriptors and watchers as before, but for the stores that read the state
    wait_until(lambda: watchers() == before[2], "the calm has no watcher of ours left")
    assert not [t for t in set(threading.enumerate()) - before[0] if t.name.startswith("datasync")]
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before[1] + 5 * 8, "the descriptors are given back")


@pytest.mark.parametrize("verb", ["check", "read", "scan", "commit", "stream", "revision", "compact", "campaign"])
def test_c15_every_verb_of_a_closed_store_says_so(calm34: EtcdServer, open_store: OpenStore, verb: str) -> None:
    store = open_store(calm34.endpoint)
    store.check()
    store.close()
    store.close()
    arguments = {"read": ("a",), "scan": ("",), "commit": ([],), "stream": ("", 1), "campaign": ("a",)}.get(verb, ())
    with pytest.raises(ClosedError):
        getattr(store, verb)(*arguments)


def test_i17_a_forked_child_neither_uses_nor_harms_its_parent_s_store(
    calm34: EtcdServer, open_store: OpenStore
) -> None:
    # given a store in use: a lease, a stream
    store = open_store(calm34.endpoint)
    start = store.commit([PutOp("p/life", b"", client_lifetime=True)]).revision
    with following(store, "p/", start) as follower:
        wait_until(lambda: not follower.queue.empty(), "the stream is connected")
        # when the process forks, and the child tries everything and closes
        child = os.fork()
        if child == 0:
            outcome = 1
            try:
                for attempt in (store.check, lambda: store.commit([PutOp("p/child", b"")]), store.revision):
                    try:
                        attempt()
                        break
                    except ForkedError:
                        pass
                else:
                    follower.stream.cancel()
                    store.close()
                    outcome = 0
            finally:
                os._exit(outcome)
        # then the child was refused everything, and the parent notices nothing
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        last = store.commit([PutOp("p/parent", b"")]).revision
        follower.until(last)
    assert set(state(store, "p/")) == {"p/life", "p/parent"}


def test_c15_many_threads_share_a_store(calm34: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(calm34.endpoint)
    start = store.revision()

    def write(worker: Worker) -> None:
        for number in range(25):
            store.commit([PutOp(f"p/{worker.name}", b"%d" % number)])

    workers = [Worker(f"test-{number}", write) for number in range(8)]
    for worker in workers:
        worker.start()
    with following(store, "p/", start) as follower:
        commits = [commit for batch in follower.until(start + 200) for commit in batch.commits]
    assert all(worker.close(10) for worker in workers)
    assert [commit.revision for commit in commits] == list(range(start + 1, start + 201))


def test_c15_no_call_is_left_to_the_collector_which_may_come_to_it_at_the_end_of_the_interpreter(
    calm: EtcdServer, open_store: OpenStore
) -> None:
    # given a reader that is stopped while it calls / when it has ended / then its calls are gone
    with all_calls_freed():
        events: Queue[Any] = Queue()
        plugin = Plugin(kv=open_store(calm.endpoint), prefix="p/")
        plugin.watch("agent", events, events, "")
        plugin.after_init()
        take(events).done()
        plugin.close()
