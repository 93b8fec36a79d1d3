"""What a broker refuses for a store that can do less, and what it does when the store fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from datasync.errors import InvalidArgumentError, StoreConnectionError, UnknownOutcome, UnsupportedError
from datasync.keyval import Capability, CommitResult, Condition, KeyValue, Scan, Store, WriteOp
from datasync.keyval.driver import StoreDriver
from datasync.keyval.memory import MemoryStore
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from tests.support.stores import state


class PlainStore(MemoryStore):
    """Can put, get and delete, and nothing else."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset()


class FailingStore(MemoryStore):
    """Its commits have no answer, its lists break after the first pair."""

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        raise UnknownOutcome("no answer")

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        return BrokenScan()


class BrokenScan(Scan):
    revision = 7

    def __iter__(self) -> Iterator[KeyValue]:
        yield KeyValue("a", b"", 7)
        raise StoreConnectionError("the second page did not come")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda broker: broker.put("a", b"", with_ttl(5)), "memory:// does not support with_ttl()"),
        (lambda broker: broker.new_txn().put("a", b"", with_ttl(5)), "memory:// does not support with_ttl()"),
        (lambda broker: broker.put("a", b"", with_client_lifetime_ttl()), "support with_client_lifetime_ttl()"),
        (lambda broker: broker.put_if_not_exists("a", b""), "support put_if_not_exists()"),
        (lambda broker: broker.compare_and_swap("a", b"", b""), "support compare_and_swap()"),
        (lambda broker: broker.compare_and_delete("a", b""), "support compare_and_delete()"),
        (lambda broker: broker.new_txn().put("a", b"").delete("b").commit(), "support transactions of several keys"),
        (lambda broker: broker.new_txn().if_absent("a").put("a", b"").commit(), "support conditions"),
        (lambda broker: broker.get_value("a", revision=1), "support reading at a revision"),
        (lambda broker: broker.list_values(revision=1), "support reading at a revision"),
        (lambda broker: broker.history("a"), "support history()"),
    ],
)
def test_c16_what_a_store_cannot_do_is_refused_before_anything_is_written(call: Any, message: str) -> None:
    # given a store that can do very little / when more is asked of it
    with PlainStore() as store:
        with pytest.raises(UnsupportedError) as caught:
            call(store.new_broker())
        # then the error names the store and the wish
        assert message in str(caught.value)
        assert state(store) == {}
        # and what it can do, it does
        store.new_broker().new_txn().put("a", b"1").commit()
        assert state(store) == {"a": b"1"}


def test_d50_a_list_whose_page_fails_raises_and_does_not_end_early() -> None:
    with FailingStore() as store:
        pairs = store.new_broker().list_values()
        assert next(pairs).key == "a"
        with pytest.raises(StoreConnectionError):
            next(pairs)
        with pytest.raises(StoreConnectionError):
            list(store.new_broker().list_keys())


def test_c17_a_failed_transaction_still_holds_its_operations() -> None:
    with FailingStore() as failing, MemoryStore() as store:
        txn = failing.new_broker("p/").new_txn().put("a", b"1")
        with pytest.raises(UnknownOutcome):
            txn.commit()
        failing.commit = store.commit  # type: ignore[method-assign]
        txn.commit()
        assert state(store) == {"p/a": b"1"}


def test_a_refused_operation_leaves_a_transaction_as_it_was() -> None:
    with MemoryStore() as store:
        txn = store.new_broker().new_txn().put("a", b"1")
        for wrong in (lambda: txn.put("a", None), lambda: txn.delete(""), lambda: txn.put("b", b"", None)):  # type: ignore[arg-type]
            with pytest.raises(InvalidArgumentError):
                wrong()
        txn.commit()
        assert state(store) == {"a": b"1"}


def test_a_result_does_not_show_its_value() -> None:
    with MemoryStore() as store:
        store.new_broker().put("a", b"s3cret")
        assert repr(store.new_broker().get_value("a")) == "GetResult(key='a', <6 bytes>, found=True, revision=2)"


class ComparingStore(MemoryStore):
    """Has conditions and leases, but neither branches nor a driver that grants leases to locks."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.CAS, Capability.LEASE, Capability.REVISION})
    grant = StoreDriver.grant


def test_c16_a_store_with_simple_conditions_has_no_branches_and_says_why_it_has_no_locks() -> None:
    with ComparingStore() as store:
        broker = store.new_broker()
        assert broker.new_txn().if_absent("a").put("a", b"1").commit().succeeded
        for txn in (
            broker.new_txn().if_revision("a", 2).put("a", b"2"),
            broker.new_txn().if_absent("a").otherwise().put("b", b""),
        ):
            with pytest.raises(UnsupportedError, match="if_revision"):
                txn.commit()
        with pytest.raises(UnsupportedError, match="does not grant leases"):
            store.lock("a")
        assert state(store) == {"a": b"1"}


def test_a_list_in_parts_needs_nothing_of_a_driver() -> None:
    # given a store whose driver lists as a whole only
    with MemoryStore() as store:
        for key in ("a", "b", "é", "\udc80"):
            store.new_broker().put(key, b"1")
        # then the default of all drivers makes parts of it
        for after, limit, expected in (("", 2, ["a", "b"]), ("a", 1, ["b"]), ("b", 0, ["\udc80", "é"]), ("é", 0, [])):
            part = StoreDriver.scan_page(store, "", after=after, limit=limit)
            assert sorted(pair.key for pair in part) == sorted(expected)
            assert part.revision == store.scan("").revision
        with pytest.raises(UnsupportedError):
            StoreDriver.scan_page(store, "", revision=1)


def test_c16_the_verbs_of_other_stores_are_unsupported_and_no_attribute_errors() -> None:
    with PlainStore() as store:
        for call in (lambda: store.campaign("leader"), lambda: store.lock("a"), lambda: Store.compact(store)):
            with pytest.raises(UnsupportedError, match="memory://"):
                call()


@pytest.mark.parametrize("prefix", ["", "p/"])
def test_c16_an_empty_key_with_prefix_deletes_nothing_and_says_how_to(prefix: str) -> None:
    with MemoryStore() as store:
        store.new_broker().put("p/a", b"kept")
        with pytest.raises(InvalidArgumentError, match="to delete all keys below") as caught:
            store.new_broker(prefix).delete("", with_prefix())
        assert repr(prefix) in str(caught.value) or not prefix
        assert state(store) == {"p/a": b"kept"}
